"""Rows of JSON: a row per line, a list of rows, or one object that holds lists of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TextIO

from armature.contracts.file_scans import LineProblem
from armature.datasets.files.magic import UnreadableFile
from armature.datasets.files.records import Record
from armature.datasets.files.text import MAX_ROW_CHARACTERS, lines
from armature.errors import MalformedBody
from armature.strict_json import read_json

MAX_OBJECT_CHARACTERS = 16_000_000
"""Largest file that is one JSON object over several lines; it is parsed as a whole."""
_CHUNK = 1 << 16
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, or one structural character; a lone quote begins a string that is not read to its end yet."""
_ANSWER_COLUMNS = frozenset({"completion", "chosen", "rejected", "response", "output", "answer", "messages"})


def json_lines(text: TextIO) -> Iterator[Record | LineProblem]:
    """Yield the row of every line; blank lines inside the data are problems."""
    blank = 0
    for number, line in lines(text):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            yield LineProblem(line=blank, code="blank_line", message="blank line inside the data")
            blank = 0
        yield _record(number, line)


def json_list(text: TextIO) -> Iterator[Record | LineProblem]:
    """Yield the rows of a JSON list, each parsed alone, so that memory holds one.

    Raises:
        UnreadableFile: The list is cut short or followed by more, or a row is too long to go on.
    """
    elements = _Elements(text)
    for number, element in enumerate(elements, start=1):
        yield _record(number, element)
    if not elements.closed:
        raise UnreadableFile("malformed_json", "the list has no end: is the file complete?", elements.count + 1)
    if elements.rest():
        raise UnreadableFile("malformed_json", "the file goes on after the end of its list", elements.count or None)


def json_object(text: TextIO) -> Iterator[Record | LineProblem]:
    """Yield the rows of one JSON object: itself, the rows in its lists, or a prompt per text in them.

    Raises:
        UnreadableFile: The object is too large, is not JSON, or holds lists by column.
    """
    whole = text.read(MAX_OBJECT_CHARACTERS + 1)
    remedy = "write one row per line, or a list of rows"
    if len(whole) > MAX_OBJECT_CHARACTERS:
        raise UnreadableFile("unreadable_file", f"the file is one large JSON object; {remedy}")
    try:
        value = read_json(whole)
    except MalformedBody as error:
        raise UnreadableFile("malformed_json", f"{error.message}; {remedy}", 1) from None
    if any(isinstance(value.get(name), list | dict) for name in _ANSWER_COLUMNS - {"messages"}):
        raise UnreadableFile("unreadable_file", f"the file is one JSON object with a list per column; {remedy}")
    rows = list(_rows_within(value)) or [value]
    for number, row in enumerate(rows, start=1):
        yield Record(number, row)


def _rows_within(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in the lists of an object, and its texts as prompts; a row itself has none."""
    if not isinstance(value, dict) or "prompt" in value or value.keys() & _ANSWER_COLUMNS:
        return
    for child in value.values():
        for element in child if isinstance(child, list) else ():
            if isinstance(element, dict | str):
                yield {"prompt": element} if isinstance(element, str) else element
        yield from _rows_within(child)


def _record(number: int, text: str) -> Record | LineProblem:
    if len(text) > MAX_ROW_CHARACTERS:
        message = f"longer than {MAX_ROW_CHARACTERS} characters"
        return LineProblem(line=number, code="row_too_long", message=message)
    try:
        value = read_json(text)
    except MalformedBody as error:
        return LineProblem(line=number, code="malformed_json", message=error.message)
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        return LineProblem(line=number, code="invalid_value", field="row", message="a row must be a JSON object")
    return Record(number, value)


class _Elements:
    """The texts of a JSON list's elements, split at the commas outside strings and brackets."""

    def __init__(self, text: TextIO) -> None:
        self.count, self.closed = 0, False
        self._text, self._buffer = text, ""
        self._fill()
        self._buffer = self._buffer.lstrip().removeprefix("[")

    def __iter__(self) -> Iterator[str]:
        while not self.closed:
            end = self._end()
            if end is None:
                return
            element, self.closed = self._buffer[:end], self._buffer[end] == "]"
            self._buffer = self._buffer[end + 1 :]
            if self.closed and not self.count and not element.strip():
                return
            self.count += 1
            yield element

    def rest(self) -> bool:
        """Tell whether more than blanks follow the list."""
        while not self._buffer.strip():
            if not self._fill():
                return False
        return True

    def _end(self) -> int | None:
        """Find the comma or bracket that ends the element; None at the end of the text."""
        depth = position = 0
        while True:
            token = _TOKEN.search(self._buffer, position)
            if token is None or token[0] == '"':
                position = len(self._buffer) if token is None else token.start()
                if position > MAX_ROW_CHARACTERS or len(self._buffer) > 2 * MAX_ROW_CHARACTERS:
                    message = f"longer than {MAX_ROW_CHARACTERS} characters: the rows behind it were not read"
                    raise UnreadableFile("row_too_long", message, self.count + 1)
                if not self._fill():
                    return None
                continue
            mark, position = token[0], token.end()
            if depth == 0 and mark in ",]":
                return token.start()
            depth += (mark in "[{") - (mark in "]}")

    def _fill(self) -> bool:
        """Read on, by as much as is waiting already, so that a long string is not scanned again too often."""
        try:
            more = self._text.read(max(_CHUNK, len(self._buffer)))
        except UnicodeDecodeError as error:
            message = f"the text is not valid {error.encoding}"
            raise UnreadableFile("unreadable_file", message, self.count + 1) from None
        self._buffer += more
        return bool(more)
