"""Uploaded files: bytes stored under their hash, and for files of rows the scan of their content."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from armature.contracts.datasets import USABLE_AS
from armature.contracts.file_scans import FileScan
from armature.contracts.files import ROW_PURPOSES, DatasetCheck, FileUpload, FileView
from armature.datasets.scan import first_rows, scan_rows
from armature.db.models import Dataset, File, Job
from armature.db.transitions import is_active
from armature.errors import ChecksumMismatch, InUse, InvalidRequest, PayloadTooLarge
from armature.storage.artifacts import Blob, file_sha256, put_blob
from armature.storage.base import ArtifactStore

MAX_FILENAME = 255
SAMPLE_ROWS = 3
"""Rows that a check shows."""


@dataclass(frozen=True)
class Received:
    """An upload in the store, and for a file of rows the scan of its content."""

    blob: Blob
    scan: FileScan | None


def receive(
    store: ArtifactStore, tenant_id: str, fields: FileUpload, content: BinaryIO, max_rows_file: int
) -> Received:
    """Check an upload and put its bytes into the store under their hash; one row at a time is in memory.

    Args:
        max_rows_file: Bytes that a file of rows may have, packed and unpacked.

    Raises:
        ChecksumMismatch: The bytes do not hash to ``fields.sha256``; nothing is stored.
        PayloadTooLarge: A file of rows is larger than ``max_rows_file``; nothing is stored.
    """
    with TemporaryDirectory(prefix="armature-upload-") as folder:
        path = _spool(content, folder)
        if fields.sha256 is not None and fields.sha256 != file_sha256(path):
            raise ChecksumMismatch("the bytes received have another sha256", param="sha256")
        scan = None
        if fields.purpose in ROW_PURPOSES:
            _check_size(path, max_rows_file)
            with path.open("rb") as lines:
                scan = scan_rows(lines, max_rows_file)
        return Received(put_blob(store, tenant_id, path), scan)


def check_rows(content: BinaryIO, max_rows_file: int) -> DatasetCheck:
    """Check a file of rows as an upload would, and store nothing.

    Raises:
        PayloadTooLarge: The file is larger than ``max_rows_file``.
    """
    with TemporaryDirectory(prefix="armature-check-") as folder:
        path = _spool(content, folder)
        _check_size(path, max_rows_file)
        with path.open("rb") as file:
            scan = scan_rows(file, max_rows_file)
        with path.open("rb") as file:
            sample = first_rows(file, SAMPLE_ROWS)
    return DatasetCheck(
        **scan.model_dump(exclude={"statistics", "validation"}),
        usable_as=list(USABLE_AS[scan.format]) if scan.format else [],
        rows=scan.statistics.rows,
        sample=[row.model_dump(mode="json") for row in sample],
        validation=scan.validation,
        statistics=scan.statistics,
    )


def _spool(content: BinaryIO, folder: str) -> Path:
    path = Path(folder, "upload")
    with path.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    return path


def _check_size(path: Path, max_rows_file: int) -> None:
    if path.stat().st_size > max_rows_file:
        raise PayloadTooLarge(f"a file of rows must not exceed {max_rows_file} bytes", param="file")


def displayed_filename(filename: str | None) -> str:
    """Cut a file name for display and escape what does not print; it is never part of a path.

    Raises:
        InvalidRequest: The upload has no file name.
    """
    if not filename:
        raise InvalidRequest("needs a file name", param="file")
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in filename[:MAX_FILENAME]
    )
    return shown[:MAX_FILENAME]


def create_file(session: Session, tenant_id: str, fields: FileUpload, filename: str, received: Received) -> File:
    """Insert the row of an upload whose bytes are in the store."""
    file = File(
        tenant_id=tenant_id,
        filename=filename,
        purpose=fields.purpose,
        harmful=fields.harmful,
        sha256=received.blob.sha256,
        bytes=received.blob.size,
        scan=received.scan.model_dump(mode="json") if received.scan else None,
    )
    session.add(file)
    session.flush()
    return file


def delete_file(session: Session, file: File) -> None:
    """Delete a file's row; the sweep deletes bytes that no row refers to.

    Raises:
        InUse: A data set or an unfinished job uses the file.
    """
    if session.scalars(select(Dataset.id).where(Dataset.file_id == file.id).limit(1)).first() is not None:
        raise InUse("a data set is made of this file")
    refuse_if_a_job_needs(session, file.tenant_id, file.id)
    session.delete(file)
    session.flush()


def refuse_if_a_job_needs(session: Session, tenant_id: str, id: str) -> None:
    """Refuse to delete an input of one of the tenant's unfinished jobs.

    Raises:
        InUse: Such a job exists; the message names it.
    """
    needs = cast(Job.inputs, String).contains(id, autoescape=True)  # an id is random: no other text contains it
    found = session.scalars(select(Job.id).where(Job.tenant_id == tenant_id, is_active(), needs).limit(1)).first()
    if found is not None:
        raise InUse(f"the unfinished job {found} uses it")


def scan_of(file: File) -> FileScan | None:
    """Read the scan of a file of rows; None for any other file."""
    return FileScan.model_validate(file.scan) if file.scan is not None else None


def file_view(file: File) -> FileView:
    """Build the file's view."""
    scan = scan_of(file)
    return FileView.model_validate(
        {
            "id": file.id,
            "filename": file.filename,
            "purpose": file.purpose,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "harmful": file.harmful,
            "status": "error" if scan and scan.validation.errors else "processed",
            "created_at": int(file.created_at),
            "format": scan and scan.format,
            "form": scan and scan.form,
            "container": scan and scan.container,
            "rows": scan and scan.statistics.rows,
            "validation": scan and scan.validation,
        }
    )
