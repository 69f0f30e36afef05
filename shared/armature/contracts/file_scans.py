"""The result of scanning a file of rows: its format, its bad lines, and statistics of its rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import View
from armature.contracts.datasets import DatasetFormat
from armature.contracts.preferences import AttributeName
from armature.errors import InvalidDataset

SHOWN_PROBLEMS = 20
MAX_PROBLEMS = 1000
"""Bad lines after which the scan stops, if they are more than the good ones."""
REMEMBERED = 200_000
"""Bound on memory: row digests kept to find duplicates, and rated answers kept to find a partner."""


Container = Literal["json_lines", "json_list", "json_object", "csv", "parquet"]
"""What the rows of a file are in; ``csv`` is any table of text. Each may be packed with gzip."""
LINES: frozenset[Container] = frozenset({"json_lines", "csv"})
"""Containers whose rows have lines; elsewhere they are counted."""


class LineProblem(View):
    """An error in a line; ``line`` counts from 1 and is None for an error of the whole file."""

    line: int | None = Field(description="of a file without lines (parquet, a JSON list) the number of the row")
    unit: Literal["line", "row"] = "line"
    code: str
    field: str | None = None
    message: str
    of_a_row: bool = Field(True, description="concerns this row alone: the others can be used without it")

    def error(self) -> InvalidDataset:
        """Convert it to the error that refuses the file."""
        if self.line is None:
            return InvalidDataset(self.message, param="file_id")
        where = f"{self.field}: " if self.field else ""
        param = ".".join(filter(None, (f"line.{self.line}", self.field)))
        return InvalidDataset(f"{self.unit} {self.line}: {where}{self.message}", param=param)


class Lengths(View):
    """Lengths of a text column in characters. Tokens depend on the tokenizer; training jobs report them."""

    min: int
    mean: float
    max: int


class AttributeStatistics(View):
    """Statistics of the labels of one attribute."""

    labels: int = Field(description="pairs with a better response; in a lexicon, patterns")
    first_share: float | None = Field(None, description="share of the labels that prefer the first response")
    ties: int = Field(0, description="pairs labelled as equal")
    tie_share: float | None = Field(None, description="ties / (labels + ties)")


class DatasetStatistics(View):
    """Statistics of a data set's rows."""

    rows: int
    characters: dict[str, Lengths] = Field(description="lengths of prompts and of completions or responses")
    identical_row_share: float = Field(
        description=f"share of rows with the same content as an earlier one, among the first {REMEMBERED:,} distinct"
    )
    pairs: int | None = Field(None, description="pairs of a preference data set, or made from rated answers")
    unpaired_answers: int = Field(0, description="rated answers without a partner, which training leaves out")
    identical_answers: int = Field(0, description="pairs of two equal answers: ties in every attribute")
    attributes: dict[AttributeName, AttributeStatistics] = Field(default_factory=dict)
    agreement: dict[AttributeName, dict[AttributeName, float | None]] = Field(
        default_factory=dict, description="share of pairs with labels of both that prefer the same response"
    )
    conflicting_share: float | None = Field(
        None, description="share of pairs with two or more labels in which two disagree"
    )

    def renamed(self, old: str, new: str) -> DatasetStatistics:
        """Copy the statistics with the attribute ``old`` renamed to ``new``."""
        attributes = {new if name == old else name: value for name, value in self.attributes.items()}
        agreement = {
            new if row == old else row: {new if name == old else name: value for name, value in cells.items()}
            for row, cells in self.agreement.items()
        }
        return self.model_copy(update={"attributes": attributes, "agreement": agreement})


class RowWarning(View):
    """A finding that is allowed but probably not intended."""

    code: str
    message: str
    count: int


class FileValidation(View):
    """The errors and warnings of a file's rows."""

    errors: list[LineProblem] = Field(description=f"the first {SHOWN_PROBLEMS}")
    error_count: int = Field(description=f"counting stops at {MAX_PROBLEMS} if that is more than the good rows")
    skippable: bool = Field(
        False, description="every error concerns one row, and all were read: a data set may skip the bad rows"
    )
    warnings: list[RowWarning]


class FileScan(View):
    """The result of scanning a file of rows. Without a valid row there is no format."""

    format: DatasetFormat | None
    form: str | None = Field(None, description="name of the form that the columns were recognised as")
    container: Container | None = None
    conversational: bool
    needs_attribute: bool
    validation: FileValidation
    statistics: DatasetStatistics
