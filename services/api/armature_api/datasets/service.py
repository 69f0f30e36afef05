"""Uploaded files, and data sets: files whose every row was checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.datasets import (
    MAX_ROW_BYTES,
    DatasetCreateRequest,
    DatasetFormat,
    DatasetView,
    FilePurpose,
    FileView,
    read_rows,
)
from armature.db.models import Dataset, File
from armature.errors import ChecksumMismatch, InvalidRequest
from armature.storage.artifacts import blob_key, fetch_object, file_sha256, put_blob
from armature.storage.base import ArtifactStore

MAX_FILENAME = 255


def store_upload(
    store: ArtifactStore, tenant_id: str, upload: BinaryIO, expected_sha256: str | None
) -> tuple[str, int]:
    """Put an upload's bytes into the store under their hash; (sha256, bytes).

    Raises:
        ChecksumMismatch: The bytes do not hash to what the client announced; nothing is stored.
    """
    with TemporaryDirectory(prefix="armature-upload-") as folder:
        path = Path(folder, "upload")
        with path.open("wb") as file:
            shutil.copyfileobj(upload, file)
        if expected_sha256 is not None and expected_sha256 != file_sha256(path):
            raise ChecksumMismatch("the bytes received have another sha256", param="sha256")
        blob = put_blob(store, tenant_id, path)
    return blob.sha256, blob.size


def check_filename(filename: str | None) -> str:
    """A name to show to people; it is never part of a path.

    Raises:
        InvalidRequest: It is missing, too long, or holds control characters.
    """
    if not filename or len(filename) > MAX_FILENAME or not filename.isprintable():
        raise InvalidRequest(f"needs a printable file name of 1 to {MAX_FILENAME} characters", param="file")
    return filename


def create_file(
    session: Session, tenant_id: str, *, filename: str, purpose: FilePurpose, sha256: str, size: int
) -> File:
    """Record an upload whose bytes lie in the store."""
    file = File(tenant_id=tenant_id, filename=filename, purpose=purpose, sha256=sha256, bytes=size)
    session.add(file)
    session.flush()
    return file


def count_rows(store: ArtifactStore, file: File, format: DatasetFormat) -> int:
    """Check every row of a stored file against a format; how many there are.

    Raises:
        InvalidDataset: Naming the first bad line.
    """
    with TemporaryDirectory(prefix="armature-dataset-") as folder:
        path = Path(folder, "rows")
        fetch_object(store, blob_key(file.tenant_id, file.sha256), path, file.sha256)
        with path.open("rb") as lines:
            return sum(1 for _ in read_rows(_bounded_lines(lines), format))


def create_dataset(session: Session, file: File, request: DatasetCreateRequest, rows: int) -> Dataset:
    """Record a data set whose rows were checked."""
    dataset = Dataset(tenant_id=file.tenant_id, name=request.name, format=request.format, file_id=file.id, rows=rows)
    session.add(dataset)
    session.flush()
    return dataset


def file_view(file: File) -> FileView:
    """As the API shows it."""
    return FileView.model_validate(
        {
            "id": file.id,
            "filename": file.filename,
            "purpose": file.purpose,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "created_at": int(file.created_at),
        }
    )


def dataset_views(session: Session, datasets: list[Dataset]) -> list[DatasetView]:
    """As the API shows them, each with facts of its file."""
    files = {
        file.id: file
        for file in session.scalars(select(File).where(File.id.in_({dataset.file_id for dataset in datasets})))
    }
    return [_dataset_view(dataset, files[dataset.file_id]) for dataset in datasets]


def _dataset_view(dataset: Dataset, file: File) -> DatasetView:
    return DatasetView.model_validate(
        {
            "id": dataset.id,
            "name": dataset.name,
            "format": dataset.format,
            "file_id": file.id,
            "rows": dataset.rows,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "created_at": int(dataset.created_at),
        }
    )


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines that never take more memory than the longest row allowed; a longer one is cut where it is refused."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        yield line
