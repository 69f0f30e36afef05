"""What reading a file of rows finds: its form, its bad lines, and statistics of its rows."""

from __future__ import annotations

from pydantic import Field

from armature.contracts.base import View
from armature.contracts.datasets import DatasetFormat
from armature.contracts.preferences import AttributeName
from armature.errors import InvalidDataset

SHOWN_PROBLEMS = 20
MAX_PROBLEMS = 1000
"""After so many bad lines nobody reads on."""
REMEMBERED = 200_000
"""Rows whose digests are kept to find equal ones, and rated answers that may wait for a partner: so much memory and
no more."""


class LineProblem(View):
    """What is wrong with a line; ``line`` counts from 1 and is None where the file as a whole is meant."""

    line: int | None
    code: str
    field: str | None = None
    message: str

    def error(self) -> InvalidDataset:
        """As the error that refuses the file."""
        if self.line is None:
            return InvalidDataset(self.message, param="file_id")
        where = f"{self.field}: " if self.field else ""
        param = ".".join(filter(None, (f"line.{self.line}", self.field)))
        return InvalidDataset(f"line {self.line}: {where}{self.message}", param=param)


class Lengths(View):
    """Characters of a text column. Tokens depend on a tokenizer: the job that trains on the rows reports them."""

    min: int
    mean: float
    max: int


class AttributeStatistics(View):
    """How pairs are judged by one attribute."""

    labels: int = Field(description="pairs with a better response; of a lexicon, patterns")
    first_share: float | None = Field(None, description="of them, the share that prefers the first response")
    ties: int = Field(0, description="pairs judged to be equal")
    tie_share: float | None = Field(None, description="ties / (labels + ties)")


class DatasetStatistics(View):
    """What is known of a data set's rows."""

    rows: int
    characters: dict[str, Lengths] = Field(description="of prompts and of completions or responses")
    identical_row_share: float = Field(
        description=f"rows that say the same as an earlier one, among the first {REMEMBERED:,} different ones"
    )
    pairs: int | None = Field(None, description="of a preference data set; of rated answers, the pairs they make")
    unpaired_answers: int = Field(0, description="rated answers without a partner: training leaves them out")
    identical_answers: int = Field(0, description="pairs of two equal answers: ties in everything")
    attributes: dict[AttributeName, AttributeStatistics] = Field(default_factory=dict)
    agreement: dict[AttributeName, dict[AttributeName, float | None]] = Field(
        default_factory=dict, description="share of the pairs labelled by both in which both prefer the same response"
    )
    conflicting_share: float | None = Field(
        None, description="share of the pairs labelled by two or more in which two disagree"
    )

    def renamed(self, old: str, new: str) -> DatasetStatistics:
        """The same with another name for an attribute."""
        attributes = {new if name == old else name: value for name, value in self.attributes.items()}
        agreement = {
            new if row == old else row: {new if name == old else name: value for name, value in cells.items()}
            for row, cells in self.agreement.items()
        }
        return self.model_copy(update={"attributes": attributes, "agreement": agreement})


class RowWarning(View):
    """Something that is allowed and probably not meant."""

    code: str
    message: str
    count: int


class FileValidation(View):
    """What is wrong with a file's rows."""

    errors: list[LineProblem] = Field(description=f"the first {SHOWN_PROBLEMS}")
    error_count: int = Field(description=f"counting stops at {MAX_PROBLEMS}")
    warnings: list[RowWarning]


class FileScan(View):
    """All that is found out about a file of rows. Without a good row there is no format."""

    format: DatasetFormat | None
    conversational: bool
    needs_attribute: bool
    validation: FileValidation
    statistics: DatasetStatistics
