"""``/v1/files`` and ``/v1/datasets``."""

from __future__ import annotations

from typing import Annotated

from fastapi import File as FileField
from fastapi import Form, UploadFile

from armature.contracts.base import Sha256
from armature.contracts.datasets import DatasetCreateRequest, DatasetView, FilePurpose, FileView
from armature.contracts.pages import Page
from armature.db.models import Dataset, File
from armature_api.datasets import service
from armature_api.deps import CallerDep, ReaderDep, SessionDep, StoreDep, scoped_router
from armature_api.quotas import check_storage_quota
from armature_api.references import find_file
from armature_api.rows import PageDep, find, newest_first, visible

router = scoped_router("datasets", "data")


@router.post("/files", status_code=201, form_limits={"max_files": 1, "max_fields": 2, "max_part_size": 1024})
def upload_file(
    caller: CallerDep,
    session: SessionDep,
    store: StoreDep,
    file: Annotated[UploadFile, FileField()],
    purpose: Annotated[FilePurpose, Form()],
    sha256: Annotated[Sha256 | None, Form(description="refuse the upload unless its bytes hash to this")] = None,
) -> FileView:
    """Upload a file. Equal bytes are stored once per tenant."""
    filename = service.check_filename(file.filename)
    check_storage_quota(session, caller.tenant_id, caller.limits, file.size or 0)
    stored_sha256, size = service.store_upload(store, caller.tenant_id, file.file, sha256)
    row = service.create_file(
        session, caller.tenant_id, filename=filename, purpose=purpose, sha256=stored_sha256, size=size
    )
    return service.file_view(row)


@router.get("/files/{file_id}")
def get_file(file_id: str, caller: CallerDep, session: ReaderDep) -> FileView:
    """Show a file."""
    return service.file_view(find(session, File, caller.tenant_id, file_id))


@router.post("/datasets", status_code=201)
def create_dataset(
    request: DatasetCreateRequest, caller: CallerDep, reader: ReaderDep, session: SessionDep, store: StoreDep
) -> DatasetView:
    """Register an uploaded file as a data set. Every row is checked before this answers."""
    file = find_file(reader, caller.tenant_id, request.file_id, "dataset", param="file_id")
    rows = service.count_rows(store, file, request.format)  # slow, and before the unit of work begins
    dataset = service.create_dataset(session, file, request, rows)
    return service.dataset_views(session, [dataset])[0]


@router.get("/datasets")
def list_datasets(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[DatasetView]:
    """List data sets, newest first."""
    rows, has_more = newest_first(session, Dataset, visible(Dataset, caller.tenant_id), page)
    return Page.of(service.dataset_views(session, rows), has_more)


@router.get("/datasets/{dataset_id}")
def get_dataset(dataset_id: str, caller: CallerDep, session: ReaderDep) -> DatasetView:
    """Show a data set."""
    return service.dataset_views(session, [find(session, Dataset, caller.tenant_id, dataset_id)])[0]
