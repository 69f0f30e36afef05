"""JSON lines to rows, one at a time: memory holds one line, and every error has its line number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import ValidationError

from armature.contracts.datasets import (
    ROWS,
    UNNAMED_ATTRIBUTE,
    USABLE_AS,
    DatasetUse,
    Prompt,
    PromptRow,
    Row,
)
from armature.contracts.file_scans import LineProblem
from armature.datasets.answer_pairs import pair_answers
from armature.datasets.row_forms import Form, detect_form, is_conversational
from armature.errors import DuplicateKey, InvalidDataset, InvalidRequest, MalformedBody, NonFiniteNumber
from armature.strict_json import parse_json

R = TypeVar("R", bound=Row)

MAX_ROW_BYTES = 4_000_000
_TAGS = ("text", "dialogue")
_CODES: dict[type[InvalidRequest], str] = {
    MalformedBody: "malformed_json",
    DuplicateKey: "duplicate_key",
    NonFiniteNumber: "non_finite_number",
}
_VALUE_CODES = {"missing": "missing_field", "no_common_prefix": "no_common_prefix", "no_answer": "no_answer"}
"""Our code by pydantic's error type; any other is an ``invalid_value``."""


class _BadLine(Exception):
    """A line that is not a valid row."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


@dataclass(frozen=True)
class FileShape:
    """What all rows must share with the first: the form, messages or texts, named attributes or not."""

    form: Form
    conversational: bool
    needs_attribute: bool


@dataclass(frozen=True)
class GoodLine:
    """A valid row, with its line and line number."""

    number: int
    raw: bytes
    row: Row


class RowReader:
    """A reader of a file's rows. It accepts a byte-order mark, CRLF and blank lines at the end.

    Args:
        file: Opened for reading bytes.
        attribute: The attribute of labels for which a row names none.
    """

    def __init__(self, file: BinaryIO, attribute: str = UNNAMED_ATTRIBUTE) -> None:
        self.shape: FileShape | None = None
        """Set by the first valid line."""
        self._file, self._attribute = file, attribute
        self._rows = 0

    def read(self) -> Iterator[GoodLine | LineProblem]:
        """Yield every line's row or its error."""
        blank = 0
        for number, raw in enumerate(_bounded_lines(self._file), start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                blank = blank or number
                continue
            if blank:
                yield LineProblem(line=blank, code="blank_line", message="blank line inside the data")
                blank = 0
            self._rows += 1
            try:
                yield GoodLine(number, raw, self._parse(raw))
            except _BadLine as error:
                yield LineProblem(line=number, code=error.code, field=error.field, message=error.message)
        if not self._rows:
            yield LineProblem(line=None, code="no_rows", message="the file has no rows")

    def _parse(self, raw: bytes) -> Row:
        if len(raw) > MAX_ROW_BYTES:
            raise _BadLine("row_too_long", f"longer than {MAX_ROW_BYTES} bytes")
        columns = _parse_columns(raw)
        form = self.shape.form if self.shape else detect_form(columns)
        conversational = is_conversational(columns)
        row, needs_attribute = _convert(form, columns, self._attribute)
        shape = FileShape(form, bool(conversational), needs_attribute)
        self.shape = self.shape or shape
        if conversational is None or shape != self.shape:
            raise _BadLine("mixed_forms", _difference(shape, self.shape, conversational))
        if form.format == "lexicon" and self._rows > 1:
            raise _BadLine("invalid_value", "a lexicon must be one object on one line")
        return row


def read_rows(file: BinaryIO, model: type[R], attribute: str | None = None) -> Iterator[R]:
    """Yield a file's rows, converted to the type that a job uses.

    Args:
        file: Opened for reading bytes.
        model: The row type; one of :data:`armature.contracts.datasets.ROWS`.
        attribute: The attribute of labels for which a row names none.

    Raises:
        InvalidDataset: A line is bad (the first is named), or the file's format does not convert to ``model``.
    """
    (use,) = (use for use, row in ROWS.items() if row is model)
    return cast("Iterator[R]", _USES.get(use, iter)(_good_rows(file, use, attribute or UNNAMED_ATTRIBUTE)))


def find_line(file: BinaryIO, prompt: Prompt) -> int | None:
    """Return the number of the first line that has ``prompt``; None if no valid line has it."""
    lines = (line for line in RowReader(file).read() if isinstance(line, GoodLine))
    return next((line.number for line in lines if getattr(line.row, "prompt", None) == prompt), None)


def _good_rows(file: BinaryIO, use: DatasetUse, attribute: str) -> Iterator[Any]:
    reader = RowReader(file, attribute)
    for line in reader.read():
        if isinstance(line, LineProblem):
            raise line.error()
        assert reader.shape is not None
        if use not in USABLE_AS[reader.shape.form.format]:
            raise InvalidDataset(f"{reader.shape.form.format} rows can not be used as {use} rows", param="format")
        yield line.row


def _as_prompts(rows: Iterator[Any]) -> Iterator[Row]:
    return (PromptRow(prompt=row.prompt) for row in rows)


_USES: dict[DatasetUse, Callable[[Iterator[Any]], Iterator[Row]]] = {"preference": pair_answers, "prompt": _as_prompts}


def _bounded_lines(file: BinaryIO) -> Iterable[bytes]:
    """Yield the lines, each cut to the longest row allowed, so that memory is bounded."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        chunk = line
        while len(chunk) > MAX_ROW_BYTES and not chunk.endswith(b"\n"):
            chunk = file.readline(MAX_ROW_BYTES + 1)
        yield line


def _parse_columns(raw: bytes) -> dict[str, Any]:
    try:
        value = parse_json(raw)
    except InvalidRequest as error:
        raise _BadLine(_CODES.get(type(error), "invalid_value"), error.message, error.param) from None
    if not isinstance(value, dict):
        raise _BadLine("invalid_value", "a row must be a JSON object", "row")
    return value


def _convert(form: Form, columns: dict[str, Any], attribute: str) -> tuple[Row, bool]:
    """Return (the row that jobs use, whether it needed ``attribute``)."""
    try:
        row = form.model.model_validate(columns)
        return row.convert(attribute), row.needs_attribute
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part not in _TAGS) or "row"
        raise _BadLine(_VALUE_CODES.get(first["type"], "invalid_value"), first["msg"], field) from None


def _difference(row: FileShape, file: FileShape, conversational: bool | None) -> str:
    if conversational is None:
        return "text and lists of messages in one row"
    if row.conversational != file.conversational:
        return "texts and lists of messages are mixed: every row must be like the first"
    return "either every row must name the attribute of its label, or none"
