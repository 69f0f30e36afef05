"""Rows of CSV and TSV files: the first line names the columns, and every cell is text or absent."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, TextIO

from armature.contracts.file_scans import LineProblem
from armature.datasets.files.magic import UnreadableFile
from armature.datasets.files.records import Record
from armature.datasets.files.text import MAX_ROW_CHARACTERS, lines
from armature.strict_json import Repeated

csv.field_size_limit(MAX_ROW_CHARACTERS)
_JSON_COLUMNS = frozenset({"messages", "conversations", "labels", "scores", "responses", "answers", "completions"})
"""Columns whose cells are JSON; elsewhere only a list of objects is, since a text may begin with a bracket."""


def delimiter_of(header: str) -> str:
    """Tell the delimiter of a header line: a tab, else a semicolon where there is no comma, else a comma."""
    if "\t" in header:
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def cells_of(line: str, delimiter: str) -> list[str]:
    """Split one line into its cells, stripped."""
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def table_rows(text: TextIO, delimiter: str) -> Iterator[Record | LineProblem]:
    """Yield the rows of a table, each with the number of its first line.

    Args:
        text: Opened with ``newline=""``, so that line breaks inside quotes stay as they are.
        delimiter: What separates the cells.

    Raises:
        UnreadableFile: A cell has no end, or is too long to go on.
    """
    reader = csv.reader((_bounded(number, line) for number, line in lines(text)), delimiter=delimiter)
    names: list[str] | None = None
    first = 1
    try:
        for cells in reader:
            if cells and names is None:
                names = [name.strip() for name in cells]
            elif cells and names is not None:
                yield _record(first, names, cells)
            first = reader.line_num + 1
    except csv.Error as error:
        raise UnreadableFile("malformed_table", f"{error}: is a quotation mark never closed?", first) from None


def _bounded(number: int, line: str) -> str:
    if len(line) > MAX_ROW_CHARACTERS:
        message = f"longer than {MAX_ROW_CHARACTERS} characters: the rows behind it were not read"
        raise UnreadableFile("row_too_long", message, number)
    return line


def _record(number: int, names: list[str], cells: list[str]) -> Record | LineProblem:
    if len(cells) > len(names):
        message = f"{len(cells)} cells under a header of {len(names)}"
        return LineProblem(line=number, code="malformed_table", message=message)
    pairs = [(name, _value(name, cell)) for name, cell in zip(names, cells, strict=False) if name]
    columns = dict(pairs)
    return Record(number, columns if len(columns) == len(pairs) else Repeated(pairs))


def _value(name: str, cell: str) -> Any:
    if not (name in _JSON_COLUMNS or cell.startswith("[{")):
        return cell or None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell or None
