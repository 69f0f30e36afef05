"""The kind of a file of rows by its first bytes, and its rows."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TextIO, cast

from armature.contracts.file_scans import Container, LineProblem
from armature.datasets.files.json_files import json_lines, json_list, json_object
from armature.datasets.files.magic import refuse_unreadable
from armature.datasets.files.parquet import parquet_rows
from armature.datasets.files.records import Record
from armature.datasets.files.tables import cells_of, delimiter_of, table_rows
from armature.datasets.files.text import Unpacked, encoding_of, gunzip, open_text

_HEAD = 1 << 16
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(frozen=True)
class OpenFile:
    """A file of rows.

    Attributes:
        container: What the rows are in.
        records: The rows in order; raises ``UnreadableFile`` where reading must end.
        header: The names of a table's columns.
    """

    container: Container
    records: Iterator[Record | LineProblem]
    header: tuple[str, ...] = ()

    @property
    def typed(self) -> bool:
        """Whether values have types; a table's cells are text, and parquet's integers may be floats."""
        return self.container not in ("csv", "parquet")


_TEXT: dict[Container, Callable[[TextIO], Iterator[Record | LineProblem]]] = {
    "json_lines": json_lines,
    "json_list": json_list,
    "json_object": json_object,
}


def open_rows(file: BinaryIO, max_bytes: int | None = None) -> OpenFile:
    """Open a file of rows, packed with gzip or not.

    Args:
        file: Opened for reading bytes, seekable, at its beginning.
        max_bytes: Bytes that its rows may have once they are unpacked.

    Raises:
        UnreadableFile: The first bytes are those of a file without rows.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_packed = file.read(2) == _GZIP
    file.seek(0)
    # A reader of its own: closing it leaves the caller's file open.
    stream = io.BufferedReader(Unpacked(gunzip(file) if is_packed else file, size, max_bytes), _HEAD)
    head = stream.peek(_HEAD)
    refuse_unreadable(head)
    if head.startswith(_PARQUET):
        return OpenFile(
            "parquet", _unpacked_first(stream, max_bytes) if is_packed else parquet_rows(file, size, max_bytes)
        )
    encoding = encoding_of(head)
    start = head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")
    container = _container(start)
    if container == "csv":
        first = start.splitlines()[0]
        delimiter = delimiter_of(first)
        rows = table_rows(open_text(stream, encoding, ""), delimiter)
        return OpenFile(container, rows, tuple(cells_of(first, delimiter)))
    return OpenFile(container, _TEXT[container](open_text(stream, encoding)))


def _unpacked_first(stream: io.BufferedReader[Any], max_bytes: int | None) -> Iterator[Record | LineProblem]:
    """Yield the rows of a packed parquet file, which is read from its end and so needs a copy on disk."""
    with TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        yield from parquet_rows(cast("BinaryIO", copy), copy.tell(), max_bytes)


def _container(start: str) -> Container:
    """Tell the container by the text that a file begins with."""
    first = start.splitlines()[0].strip() if start else ""
    if first.startswith("["):
        return "json_list"
    if first == "{":
        return "json_object"
    if not first or first.startswith("{") or _is_json(first):
        return "json_lines"
    return "csv"


def _is_json(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        json.loads(text)
        return True
    return False
