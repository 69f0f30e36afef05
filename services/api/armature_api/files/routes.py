"""Routes of ``/v1/files``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from fastapi.responses import FileResponse

from armature.contracts.files import FileDeleted, FilePurpose, FileView
from armature.contracts.pages import Page
from armature.db.models import File
from armature_api.deps import CallerDep, ReaderDep, SessionDep, StoreDep, scoped_router
from armature_api.files import service
from armature_api.files.uploads import UPLOAD_BODY, UploadedDep
from armature_api.kit.downloads import DownloadFolder, send_blob
from armature_api.kit.idempotency import OnceDep
from armature_api.kit.queries import PageDep, find, newest_first, visible_parts
from armature_api.quotas import check_storage_quota, lock_limits

router = scoped_router("files", "data")


@router.post("/files", status_code=201, openapi_extra=UPLOAD_BODY)
def upload_file(caller: CallerDep, once: OnceDep, uploaded: UploadedDep, session: SessionDep) -> FileView:
    """Upload a file. Equal bytes are stored once per tenant; rows are checked before the response."""
    fields, filename, received = uploaded.fields, uploaded.filename, uploaded.received

    def create() -> FileView:
        lock_limits(session, caller)
        check_storage_quota(session, caller, received.blob.size)
        return service.file_view(service.create_file(session, caller.tenant_id, fields, filename, received))

    asked = {**fields.model_dump(mode="json"), "filename": filename, "sha256": received.blob.sha256}
    return once.answer(session, FileView, asked, create)


@router.get("/files")
def list_files(
    caller: CallerDep,
    session: ReaderDep,
    page: PageDep,
    purpose: Annotated[FilePurpose | None, Query(description="only files of this purpose")] = None,
) -> Page[FileView]:
    """List files, newest first."""
    filters = [] if purpose is None else [File.purpose == purpose]
    rows, has_more = newest_first(session, File, visible_parts(File, caller.tenant_id), page, filters)
    return Page.of([service.file_view(row) for row in rows], has_more)


@router.get("/files/{file_id}")
def get_file(file_id: str, caller: CallerDep, session: ReaderDep) -> FileView:
    """Show a file and the errors in its rows."""
    return service.file_view(find(session, File, caller.tenant_id, file_id))


@router.get("/files/{file_id}/content", response_class=FileResponse)
def get_file_content(
    file_id: str, caller: CallerDep, session: ReaderDep, store: StoreDep, folder: DownloadFolder
) -> FileResponse:
    """Download a file. The ETag is its sha256; a Range that can not be served is ignored."""
    file = find(session, File, caller.tenant_id, file_id)
    if file.harmful:
        caller.require("harmful:read")
    return send_blob(store, file.tenant_id, file.sha256, file.filename, folder)


@router.delete("/files/{file_id}")
def delete_file(file_id: str, caller: CallerDep, session: SessionDep) -> FileDeleted:
    """Delete a file that no data set and no unfinished job uses. Unshared bytes are swept later."""
    file = find(session, File, caller.tenant_id, file_id)
    if file.harmful:
        caller.require("harmful:write")
    service.delete_file(session, file)
    return FileDeleted(id=file_id)
