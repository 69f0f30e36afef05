"""Data sets: files without a bad row, their format and their statistics."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.datasets import UNNAMED_ATTRIBUTE, USABLE_AS, BadRows, DatasetFormat
from armature.contracts.file_scans import DatasetStatistics, FileScan
from armature.contracts.files import DatasetCreateRequest, DatasetView
from armature.db.models import Dataset, File
from armature.errors import InvalidDataset, InvalidRequest
from armature_api.files.service import refuse_if_a_job_needs, scan_of


def create_dataset(session: Session, file: File, request: DatasetCreateRequest) -> Dataset:
    """Insert the data set that ``file`` makes; raises as :func:`describe_dataset`."""
    dataset = describe_dataset(file, request)
    session.add(dataset)
    session.flush()
    return dataset


def describe_dataset(file: File, request: DatasetCreateRequest) -> Dataset:
    """Build the data set that ``file`` makes, without inserting it.

    Raises:
        InvalidDataset: A row of the file is bad and must not be skipped, or the rows can not serve as
            ``request.format``.
        InvalidRequest: ``request.attribute`` is given for rows that name their own attribute or judge nothing.
    """
    scan = _good_scan(file, request.on_bad_rows)
    if request.attribute is not None and not scan.needs_attribute:
        raise InvalidRequest("the rows name their own attribute, or judge nothing", param="attribute")
    return Dataset(
        tenant_id=file.tenant_id,
        name=request.name,
        format=_format(scan, request.format),
        attribute=(request.attribute or UNNAMED_ATTRIBUTE) if scan.needs_attribute else None,
        file_id=file.id,
        rows=scan.statistics.rows,
    )


def delete_dataset(session: Session, dataset: Dataset) -> None:
    """Delete a data set; its file stays.

    Raises:
        InUse: An unfinished job uses it.
    """
    refuse_if_a_job_needs(session, dataset.tenant_id, dataset.id)
    session.delete(dataset)
    session.flush()


def statistics_of(dataset: Dataset, file: File) -> DatasetStatistics | None:
    """Return the rows' statistics under the data set's attribute; None for a file never scanned."""
    scan = scan_of(file)
    if scan is None:
        return None
    if dataset.attribute is None:
        return scan.statistics
    return scan.statistics.renamed(UNNAMED_ATTRIBUTE, dataset.attribute)


def dataset_views(session: Session, datasets: list[Dataset]) -> list[DatasetView]:
    """Build the views, each with its file's size, hash and scan."""
    files = {
        file.id: file
        for file in session.scalars(select(File).where(File.id.in_({dataset.file_id for dataset in datasets})))
    }
    return [_dataset_view(dataset, files[dataset.file_id]) for dataset in datasets]


def bad_rows_of(file: File) -> BadRows:
    """Tell what a job that reads a data set of this file does with a bad row.

    A file with bad rows becomes a data set only by a request to skip them, so its scan says it for the data set.
    """
    scan = scan_of(file)
    return "skip" if scan and scan.validation.error_count else "refuse"


def _good_scan(file: File, on_bad_rows: BadRows) -> FileScan:
    scan = scan_of(file)
    if scan is None:
        raise InvalidDataset("the rows were never checked; upload the file again", param="file_id")
    found = scan.validation
    if found.errors and not (on_bad_rows == "skip" and found.skippable and scan.statistics.rows):
        error = next((one for one in found.errors if not one.of_a_row), found.errors[0]).error()
        more = found.error_count - 1
        also = f"; {more} more bad lines, the first of them listed by GET /v1/files/{file.id}" if more else ""
        remedy = "; `on_bad_rows: skip` leaves them out" if found.skippable and scan.statistics.rows else ""
        raise InvalidDataset(error.message + also + remedy, param=error.param)
    return scan


def _format(scan: FileScan, wanted: DatasetFormat | None) -> DatasetFormat:
    assert scan.format is not None  # a file without errors has a good row
    if wanted in (None, scan.format):
        return scan.format
    if wanted not in USABLE_AS[scan.format]:
        raise InvalidDataset(f"the rows are {scan.format} rows and can not serve as {wanted} rows", param="format")
    return wanted


def _dataset_view(dataset: Dataset, file: File) -> DatasetView:
    scan = scan_of(file)
    return DatasetView.model_validate(
        {
            "id": dataset.id,
            "name": dataset.name,
            "format": dataset.format,
            "usable_as": USABLE_AS[dataset.format],  # type: ignore[index]
            "form": scan and scan.form,
            "conversational": bool(scan and scan.conversational),
            "attribute": dataset.attribute,
            "file_id": file.id,
            "rows": dataset.rows,
            "on_bad_rows": bad_rows_of(file),
            "bad_rows": scan.validation.error_count if scan else 0,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "harmful": file.harmful,
            "created_at": int(dataset.created_at),
            "statistics": statistics_of(dataset, file),
            "warnings": scan.validation.warnings if scan else [],
        }
    )
