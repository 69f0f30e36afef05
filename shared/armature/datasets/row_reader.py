"""A file to the rows that jobs use, one at a time: memory holds one row, and every error has its line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from armature.contracts.datasets import (
    ROWS,
    UNNAMED_ATTRIBUTE,
    USABLE_AS,
    BadRows,
    DatasetUse,
    Prompt,
    PromptRow,
    Row,
)
from armature.contracts.file_scans import LINES, Container, LineProblem
from armature.datasets.answer_pairs import pair_answers
from armature.datasets.files.magic import UnreadableFile
from armature.datasets.files.opening import OpenFile, open_rows
from armature.datasets.files.records import Record
from armature.datasets.forms import Form, detect_form, is_conversational, is_known
from armature.datasets.forms.notes import Notes
from armature.errors import DuplicateKey, InvalidDataset, InvalidRequest, MalformedBody, NonFiniteNumber
from armature.strict_json import Repeated, check_json

R = TypeVar("R", bound=Row)

AHEAD = 20
"""Rows that are read before the first is judged, to know the columns."""
_TAGS = ("text", "dialogue")
_CODES: dict[type[InvalidRequest], str] = {
    MalformedBody: "malformed_json",
    DuplicateKey: "duplicate_key",
    NonFiniteNumber: "non_finite_number",
}
_VALUE_CODES = {"missing": "missing_field", "no_common_prefix": "no_common_prefix", "no_answer": "no_answer"}
"""Our code by pydantic's error type; any other is an ``invalid_value``."""
_ESCAPED = range(0xDC80, 0xDD00)
"""Surrogates that stand for bytes which are not UTF-8."""


class _BadRow(Exception):
    """A row that can not be used."""

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
    """A valid row of a file, with its number, and the rows it gives to jobs: none if it is left out."""

    number: int
    rows: tuple[Row, ...]


class RowReader:
    """A reader of a file's rows, whatever the file's container and the rows' form.

    Args:
        file: Opened for reading bytes, seekable, at its beginning.
        attribute: The attribute of labels for which a row names none.
        max_bytes: Bytes that the rows may have once they are unpacked.
    """

    def __init__(self, file: BinaryIO, attribute: str = UNNAMED_ATTRIBUTE, *, max_bytes: int | None = None) -> None:
        self.shape: FileShape | None = None
        """Set by the first valid row."""
        self.container: Container | None = None
        self.notes: Notes = Notes()
        """Counts of what was left out or changed."""
        self.unused: Counter[str] = Counter()
        """Columns that the form does not use, by the rows that have them."""
        self._file, self._attribute, self._max_bytes = file, attribute, max_bytes
        self._rows = 0
        self._first_columns: Mapping[str, Any] = {}

    def read(self) -> Iterator[GoodLine | LineProblem]:
        """Yield every row, or its error. The last error may be of the whole file."""
        try:
            opened = open_rows(self._file, self._max_bytes)
            self.container = opened.container
            for found in self._read(opened):
                yield found if isinstance(found, GoodLine) else self._in_unit(found)
        except UnreadableFile as error:
            yield self._in_unit(LineProblem(line=error.number, code=error.code, message=error.message, of_a_row=False))

    def _read(self, opened: OpenFile) -> Iterator[GoodLine | LineProblem]:
        if opened.container == "csv" and not is_known(dict.fromkeys(opened.header)):
            message = "the first line is neither JSON nor a table's header with known columns, such as prompt"
            raise UnreadableFile("unknown_columns", message, 1)
        ahead: list[Record | LineProblem] = []
        end: UnreadableFile | None = None
        try:
            ahead.extend(islice(opened.records, AHEAD))
        except UnreadableFile as error:  # the rows before it are in the list
            end = error
        self._first_columns = _columns_of(ahead)
        for record in chain(ahead, opened.records):
            self._rows += 1
            if isinstance(record, LineProblem):
                yield record
                continue
            try:
                yield GoodLine(record.number, self._parse(record, opened.typed))
            except _BadRow as error:
                yield LineProblem(line=record.number, code=error.code, field=error.field, message=error.message)
        if end is not None:
            raise end
        if not self._rows:
            yield LineProblem(line=None, code="no_rows", message="the file has no rows", of_a_row=False)

    def _in_unit(self, problem: LineProblem) -> LineProblem:
        counts_rows = self.container is not None and self.container not in LINES
        return problem.model_copy(update={"unit": "row"}) if counts_rows else problem

    def _parse(self, record: Record, typed: bool) -> tuple[Row, ...]:
        present = {name: value for name, value in record.columns.items() if value is not None}
        form = self.shape.form if self.shape else detect_form({**self._first_columns, **present})
        columns = {name: value for name, value in present.items() if name in form.model.columns}
        _check(record.columns, columns)
        notes = Notes()
        rows, needs_attribute = _convert(form, columns, typed, self._attribute, notes)
        conversational = is_conversational(columns)
        shape = FileShape(form, bool(conversational), needs_attribute)
        self.shape = self.shape or shape
        if conversational is None or shape != self.shape:
            raise _BadRow("mixed_forms", _difference(shape, self.shape, conversational))
        if form.format == "lexicon" and self._rows > 1:
            raise _BadRow("invalid_value", "a lexicon must be one object on one line")
        self.notes.update(notes)
        self.unused.update(present.keys() - columns.keys())
        return rows


def read_rows(
    file: BinaryIO,
    model: type[R],
    attribute: str | None = None,
    on_bad_rows: BadRows = "refuse",
    skipped: Counter[str] | None = None,
) -> Iterator[R]:
    """Yield a file's rows, converted to the type that a job uses.

    Args:
        file: Opened for reading bytes.
        model: The row type; one of :data:`armature.contracts.datasets.ROWS`.
        attribute: The attribute of labels for which a row names none.
        on_bad_rows: Whether a bad row ends reading or is left out.
        skipped: Counts the bad rows left out, by their code.

    Raises:
        InvalidDataset: A row is bad (the first is named), or the file's format does not convert to ``model``.
    """
    (use,) = (use for use, row in ROWS.items() if row is model)
    counter: Counter[str] = Counter() if skipped is None else skipped
    lines = _good_lines(RowReader(file, attribute or UNNAMED_ATTRIBUTE), use, on_bad_rows, counter)
    return cast("Iterator[R]", _USES[use](lines))


def find_line(file: BinaryIO, prompt: Prompt) -> int | None:
    """Return the number of the first line that has ``prompt``; None if no valid line has it."""
    lines = (line for line in RowReader(file).read() if isinstance(line, GoodLine))
    return next((line.number for line in lines for row in line.rows if getattr(row, "prompt", None) == prompt), None)


def _good_lines(reader: RowReader, use: DatasetUse, on_bad_rows: BadRows, skipped: Counter[str]) -> Iterator[GoodLine]:
    for line in reader.read():
        if isinstance(line, LineProblem):
            if on_bad_rows == "refuse" or not line.of_a_row:
                raise line.error()
            skipped[line.code] += 1
            continue
        assert reader.shape is not None
        if use not in USABLE_AS[reader.shape.form.format]:
            raise InvalidDataset(f"{reader.shape.form.format} rows can not be used as {use} rows", param="format")
        yield line


def _columns_of(records: Sequence[Record | LineProblem]) -> dict[str, Any]:
    """Return the columns that the first row has, with the values of later rows where the first are null.

    So a table whose first row has no value in a column is not taken for one without the column.
    """
    rows = [record.columns for record in records if isinstance(record, Record)]
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in (rows[0] if rows else ())}
    return {name: found[0] for name, found in values.items() if found}


def _as_they_are(lines: Iterator[GoodLine]) -> Iterator[Any]:
    return chain.from_iterable(line.rows for line in lines)


def _as_prompts(lines: Iterator[GoodLine]) -> Iterator[Row]:
    """Yield one prompt per row of the file, however many pairs it makes."""
    return (PromptRow(prompt=line.rows[0].prompt) for line in lines if line.rows)  # type: ignore[attr-defined]


_USES: Mapping[DatasetUse, Callable[[Iterator[GoodLine]], Iterator[Row]]] = {
    "prompt": _as_prompts,
    "prompt_completion": _as_they_are,
    "preference": lambda lines: pair_answers(_as_they_are(lines)),
    "lexicon": _as_they_are,
}


def _check(record: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    """Judge the columns that count, as JSON; the others may hold anything."""
    if isinstance(record, Repeated) and record.repeated & columns.keys():
        raise _BadRow("duplicate_key", "the row has a column twice")
    try:
        check_json(dict(columns))
    except InvalidRequest as error:
        message = error.message
        if "surrogates" in message and _holds_escaped_bytes(columns):
            message = "the text is not valid UTF-8; save the file as UTF-8"
        raise _BadRow(_CODES.get(type(error), "invalid_value"), message, error.param) from None


def _holds_escaped_bytes(value: Any) -> bool:
    match value:
        case str():
            return any(ord(character) in _ESCAPED for character in value)
        case Mapping():
            return any(map(_holds_escaped_bytes, value.values()))
        case list():
            return any(map(_holds_escaped_bytes, value))
    return False


def _convert(
    form: Form, columns: dict[str, Any], typed: bool, attribute: str, notes: Notes
) -> tuple[tuple[Row, ...], bool]:
    """Return (the rows that jobs use, whether they needed ``attribute``)."""
    try:
        row = form.model.model_validate(columns, strict=None if typed else False, context=notes)
        return tuple(row.rows(attribute, notes)), row.needs_attribute
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"] if part not in _TAGS) or "row"
        raise _BadRow(_VALUE_CODES.get(first["type"], "invalid_value"), first["msg"], field) from None
    except PydanticCustomError as error:
        field = str((error.context or {}).get("column", "row"))
        raise _BadRow(_VALUE_CODES.get(error.type, "invalid_value"), error.message(), field) from None


def _difference(row: FileShape, file: FileShape, conversational: bool | None) -> str:
    if conversational is None:
        return "text and lists of messages in one row"
    if row.conversational != file.conversational:
        return "texts and lists of messages are mixed: every row must be like the first"
    return "either every row must name the attribute of its label, or none"
