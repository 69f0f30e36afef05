"""Data sets: files of one format, one JSON object a line, checked row by row before any worker sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from armature.contracts.base import Contract, Name, Sha256, UnixSeconds, View
from armature.contracts.preferences import AttributeName
from armature.contracts.strict_json import parse_json
from armature.errors import InvalidDataset, InvalidRequest

Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]
Label = Annotated[int, Field(ge=0, le=1)]
"""Index of the better response. A ``Literal[0, 1]`` would take ``true`` and ``0.0`` too: they compare equal."""
FilePurpose = Literal["model", "dataset"]


class FileView(View):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    filename: str
    purpose: FilePurpose
    bytes: int
    sha256: Sha256
    created_at: UnixSeconds


class Row(Contract):
    """Base of the row formats. Columns we do not know are ignored, as TRL does."""

    model_config = ConfigDict(extra="ignore")


class PromptRow(Row):
    """TRL's prompt-only form."""

    prompt: Text


class PromptCompletionRow(Row):
    """TRL's prompt-completion form. Harmful pairs have it."""

    prompt: Text
    completion: Text


class PreferenceRow(Row):
    """Two responses and, per attribute, which is better: 0, 1, or null for a tie (no loss from that attribute)."""

    prompt: Text
    responses: Annotated[list[Text], Field(min_length=2, max_length=2)]
    labels: Annotated[dict[AttributeName, Label | None], Field(min_length=1)]

    @model_validator(mode="after")
    def _responses_differ(self) -> PreferenceRow:
        if self.responses[0] == self.responses[1]:
            raise ValueError("the two responses are identical")
        return self


Pattern = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+( \S+)*$")]


class Lexicon(Row):
    """A deterministic scorer (one object in the file): sentence patterns per attribute.

    A pattern is a sentence of words parted by single spaces; ``*`` stands for one word. An answer is split into
    sentences at ``.``, ``!`` and ``?``. ``score_i`` = distinct patterns of attribute i / sentences. A sentence that
    matches a harm pattern, or holds a harm cue word, makes the answer harmful; one that matches no pattern at all is
    malformed.
    """

    attributes: dict[AttributeName, list[Pattern]] = Field(min_length=1)
    harm: list[Pattern] = Field(default_factory=list)
    harm_cues: list[Annotated[str, Field(pattern=r"^\S+$")]] = Field(default_factory=list)
    refusal: list[Pattern] = Field(default_factory=list)
    neutral: list[Pattern] = Field(default_factory=list)


DatasetFormat = Literal["prompt", "prompt_completion", "preference", "lexicon"]
ROWS: dict[str, type[Row]] = {
    "prompt": PromptRow,
    "prompt_completion": PromptCompletionRow,
    "preference": PreferenceRow,
    "lexicon": Lexicon,
}
MAX_ROW_BYTES = 4_000_000


class DatasetCreateRequest(Contract):
    """Register an uploaded file as a data set of one format; its rows are checked at once."""

    name: Name
    file_id: str
    format: DatasetFormat


class DatasetView(View):
    """A checked data set."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: Name
    format: DatasetFormat
    file_id: str
    rows: int
    bytes: int
    sha256: Sha256
    created_at: UnixSeconds


def read_rows(lines: Iterable[bytes], format: DatasetFormat) -> Iterator[Row]:
    """Parse and check JSON lines one by one. A byte-order mark, CRLF and a blank last line are accepted.

    Raises:
        InvalidDataset: With the line's number and the reason, at the first bad row; also for a file without rows,
            and for a lexicon of more than one line.
    """
    model, count, blank = ROWS[format], 0, 0
    for number, raw in enumerate(lines, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            blank = blank or number
            continue
        if blank:
            raise InvalidDataset(f"line {blank}: blank line inside the data", param=f"line.{blank}")
        yield _parse_row(raw, number, model)
        count += 1
        if format == "lexicon" and count > 1:
            raise InvalidDataset(f"line {number}: a lexicon is one object on one line", param=f"line.{number}")
    if not count:
        raise InvalidDataset("the file has no rows", param="file_id")


def _parse_row(raw: bytes, number: int, model: type[Row]) -> Row:
    param = f"line.{number}"
    if len(raw) > MAX_ROW_BYTES:
        raise InvalidDataset(f"line {number}: longer than {MAX_ROW_BYTES} bytes", param=param)
    try:
        value = parse_json(raw)
    except InvalidRequest as error:
        where = f"{param}.{error.param}" if error.param else param
        raise InvalidDataset(f"line {number}: {error.message}", param=where) from None
    try:
        row = model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "row"
        raise InvalidDataset(f"line {number}: {where}: {first['msg']}", param=f"{param}.{where}") from None
    return row
