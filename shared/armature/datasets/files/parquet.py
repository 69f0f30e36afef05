"""Rows of a parquet file, decoded by a process of its own.

The decoder is native code on bytes of a stranger: what a header claims may take any amount of memory, and a crash would
end the process that reads. So :mod:`armature.datasets.files.parquet_process` runs under limits and writes JSON lines.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from armature.contracts.file_scans import LineProblem
from armature.datasets.files import parquet_process
from armature.datasets.files.json_files import json_lines
from armature.datasets.files.magic import UnreadableFile
from armature.datasets.files.records import Record
from armature.datasets.files.text import Unpacked, open_text

MAX_MEMORY = 2**30
"""Bytes of data that the process may hold; it reads page by page, so that real row groups take a part of it."""
_SCRIPT = Path(parquet_process.__file__)


def parquet_rows(file: BinaryIO, size: int, max_bytes: int | None = None) -> Iterator[Record | LineProblem]:
    """Yield the rows of a parquet file.

    Args:
        file: Opened for reading bytes.
        size: Its bytes.
        max_bytes: Bytes that the rows may have as JSON.

    Raises:
        UnreadableFile: The file is damaged, or its rows need more memory or time than they may.
    """
    end: Any = None
    with _on_disk(file) as source, _decoder(source) as decoder:
        assert decoder.stdout is not None
        unpacked = io.BufferedReader(Unpacked(decoder.stdout, size, max_bytes))
        number = 0
        for found in json_lines(open_text(unpacked, "utf-8")):
            if isinstance(found, Record) and found.columns.keys() == {parquet_process.END}:
                end = found.columns[parquet_process.END]
                break
            number += 1
            yield found
    if end is None:
        message = "the parquet file is damaged, or needs too much memory; write it with smaller row groups and pages"
        raise UnreadableFile("unreadable_file", message, number or None)
    if end:
        raise UnreadableFile("unreadable_file", f"the parquet file can not be read: {end}", number or None)


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the file at its beginning, as one that another process can read."""
    file.seek(0)
    try:
        file.fileno()
    except (OSError, AttributeError):
        with TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.seek(0)
            yield cast("BinaryIO", copy)
    else:
        yield file


@contextmanager
def _decoder(source: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process that decodes ``source``, and end it however reading ends."""
    # -P: the script's folder must not come before the standard library's on the path.
    command = [sys.executable, "-P", str(_SCRIPT), str(MAX_MEMORY)]
    with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()
