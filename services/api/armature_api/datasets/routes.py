"""Routes of ``/v1/datasets``."""

from __future__ import annotations

from armature.contracts.files import DatasetCheck, DatasetCreateRequest, DatasetDeleted, DatasetView
from armature.contracts.pages import Page
from armature.db.models import Dataset, File
from armature_api.datasets import service
from armature_api.deps import CallerDep, ReaderDep, SessionDep, scoped_router
from armature_api.files.uploads import CHECK_BODY, CheckedDep
from armature_api.inputs.references import find_rows_file
from armature_api.kit.idempotency import OnceDep
from armature_api.kit.queries import PageDep, find, newest_first, visible_parts

router = scoped_router("datasets", "data")


@router.post("/datasets", status_code=201)
def create_dataset(request: DatasetCreateRequest, caller: CallerDep, session: SessionDep, once: OnceDep) -> DatasetView:
    """Register an uploaded file as a data set. A bad row, found on upload, is reported again."""

    def create() -> DatasetView:
        file = find_rows_file(session, caller.tenant_id, request.file_id, param="file_id")
        if file.harmful:
            caller.require("harmful:write", param="file_id")
        return service.dataset_views(session, [service.create_dataset(session, file, request)])[0]

    return once.answer(session, DatasetView, request, create)


@router.post("/dataset_checks", openapi_extra=CHECK_BODY)
def check_dataset(checked: CheckedDep) -> DatasetCheck:
    """Show what a file would be as a data set: form, first rows, errors and warnings. Nothing is stored."""
    return checked


@router.get("/datasets")
def list_datasets(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[DatasetView]:
    """List data sets, newest first."""
    rows, has_more = newest_first(session, Dataset, visible_parts(Dataset, caller.tenant_id), page)
    return Page.of(service.dataset_views(session, rows), has_more)


@router.get("/datasets/{dataset_id}")
def get_dataset(dataset_id: str, caller: CallerDep, session: ReaderDep) -> DatasetView:
    """Show a data set with its statistics."""
    return service.dataset_views(session, [find(session, Dataset, caller.tenant_id, dataset_id)])[0]


@router.delete("/datasets/{dataset_id}")
def delete_dataset(dataset_id: str, caller: CallerDep, session: SessionDep) -> DatasetDeleted:
    """Delete a data set that no unfinished job uses. Its file stays."""
    dataset = find(session, Dataset, caller.tenant_id, dataset_id)
    if session.get_one(File, dataset.file_id).harmful:
        caller.require("harmful:write")
    service.delete_dataset(session, dataset)
    return DatasetDeleted(id=dataset_id)
