"""Files and data sets: their requests and views in the API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, Sha256, UnixSeconds, View
from armature.contracts.datasets import BadRows, DatasetFormat, DatasetUse
from armature.contracts.file_scans import Container, DatasetStatistics, FileValidation, RowWarning
from armature.contracts.preferences import AttributeName

FilePurpose = Literal["dataset", "fine-tune", "evals", "model"]
"""``fine-tune`` and ``evals`` are the names that OpenAI's clients use for ``dataset``."""
ROW_PURPOSES: frozenset[FilePurpose] = frozenset({"dataset", "fine-tune", "evals"})
"""Purposes of files of rows, which are scanned on upload."""


class FileUpload(Contract):
    """The fields of an upload beside its bytes."""

    purpose: FilePurpose
    sha256: Sha256 | None = Field(None, description="refuse the upload unless its bytes hash to this")
    harmful: bool = Field(
        False, description="could make a model harmful: needs `harmful:write`, and `harmful:read` to be read"
    )


class FileView(View):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    filename: str = Field(description="for display; non-printable characters are escaped")
    purpose: FilePurpose
    bytes: int
    sha256: Sha256
    harmful: bool = Field(False, description="accepted only by harm vectors and the harmful roles of evaluations")
    status: Literal["processed", "error"] = Field(description="error: a row is bad, or the file can not be read")
    created_at: UnixSeconds
    format: DatasetFormat | None = Field(None, description="detected format of a file of rows")
    form: str | None = Field(None, description="the form that its columns were recognised as")
    container: Container | None = Field(None, description="what its rows are in; gzip around it is read, too")
    rows: int | None = None
    validation: FileValidation | None = None


class FileDeleted(View):
    """The response to a file's deletion, in the form of OpenAI's API."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class DatasetCreateRequest(Contract):
    """The registration of an uploaded file as a data set."""

    name: Name
    file_id: str
    format: DatasetFormat | None = Field(None, description="refuse a file that neither has nor converts to this format")
    attribute: AttributeName | None = Field(
        None, description="attribute of labels for which a row names none; 'overall' by default"
    )
    on_bad_rows: BadRows = Field("refuse", description="refuse a file with bad rows, or leave them out and count them")


class DatasetView(View):
    """A registered data set."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: Name
    format: DatasetFormat
    usable_as: list[DatasetUse] = Field(description="the row types that jobs can read from it")
    form: str | None = Field(None, description="the form that the columns were recognised as")
    conversational: bool = Field(False, description="texts are lists of messages")
    attribute: AttributeName | None = Field(None, description="attribute of labels for which a row names none")
    file_id: str
    rows: int
    on_bad_rows: BadRows = "refuse"
    bad_rows: int = Field(0, description="rows that are left out; the file's validation shows the first of them")
    bytes: int
    sha256: Sha256
    harmful: bool = Field(False, description="the file's flag")
    created_at: UnixSeconds
    statistics: DatasetStatistics | None = None
    warnings: list[RowWarning] = Field(default_factory=list)


class DatasetCheck(View):
    """What a file would be as a data set. Nothing of it was stored."""

    object: Literal["dataset.check"] = "dataset.check"
    format: DatasetFormat | None
    form: str | None
    container: Container | None
    conversational: bool
    usable_as: list[DatasetUse]
    needs_attribute: bool = Field(description="its labels name no attribute: the data set's `attribute` is theirs")
    rows: int
    sample: list[dict[str, Any]] = Field(description="the first rows as jobs read them")
    validation: FileValidation
    statistics: DatasetStatistics


class DatasetDeleted(View):
    """The response to a data set's deletion."""

    id: str
    object: Literal["dataset"] = "dataset"
    deleted: Literal[True] = True
