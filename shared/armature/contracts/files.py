"""Files and data sets as the API shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, Sha256, UnixSeconds, View
from armature.contracts.datasets import DatasetFormat, DatasetUse
from armature.contracts.file_scans import DatasetStatistics, FileValidation, RowWarning
from armature.contracts.preferences import AttributeName

FilePurpose = Literal["dataset", "fine-tune", "evals", "model"]
"""``fine-tune`` and ``evals`` are what OpenAI's clients say for ``dataset``."""
ROW_PURPOSES: frozenset[FilePurpose] = frozenset({"dataset", "fine-tune", "evals"})
"""Purposes of files that hold rows, and are checked on arrival."""


class FileUpload(Contract):
    """What an upload says of its bytes."""

    purpose: FilePurpose
    sha256: Sha256 | None = Field(None, description="refuse the upload unless its bytes hash to this")
    harmful: bool = Field(
        False, description="what could make a model do harm: needs `harmful:write`, and `harmful:read` to be read"
    )


class FileView(View):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    filename: str = Field(description="for people; characters that do not print are escaped")
    purpose: FilePurpose
    bytes: int
    sha256: Sha256
    harmful: bool = Field(False, description="only harm vectors and the harmful roles of evaluations are made from it")
    status: Literal["processed", "error"] = Field(description="error: no data set can be made of it")
    created_at: UnixSeconds
    format: DatasetFormat | None = Field(None, description="of a file of rows, as detected")
    rows: int | None = None
    validation: FileValidation | None = None


class FileDeleted(View):
    """The answer to a deletion, as OpenAI's clients read it."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class DatasetCreateRequest(Contract):
    """Register an uploaded file as a data set."""

    name: Name
    file_id: str
    format: DatasetFormat | None = Field(None, description="refuse the file unless it has this format or serves as it")
    attribute: AttributeName | None = Field(
        None, description="what the judgements are about where rows do not say it; 'overall' when left out"
    )


class DatasetView(View):
    """A checked data set."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: Name
    format: DatasetFormat
    usable_as: list[DatasetUse] = Field(description="what jobs may use it for")
    conversational: bool = Field(False, description="texts are lists of messages")
    attribute: AttributeName | None = Field(None, description="what judgements are about that do not say it")
    file_id: str
    rows: int
    bytes: int
    sha256: Sha256
    harmful: bool = Field(False, description="as its file")
    created_at: UnixSeconds
    statistics: DatasetStatistics | None = None
    warnings: list[RowWarning] = Field(default_factory=list)


class DatasetDeleted(View):
    """The answer to a deletion."""

    id: str
    object: Literal["dataset"] = "dataset"
    deleted: Literal[True] = True
