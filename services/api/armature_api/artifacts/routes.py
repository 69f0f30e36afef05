"""``/v1/artifacts`` and ``/v1/base_models``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import Depends
from fastapi.responses import FileResponse
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from armature.contracts.artifacts import ArtifactManifest, ArtifactView, BaseModelView
from armature.contracts.pages import Page
from armature.db.models import Artifact, BaseModel
from armature_api.artifacts import service
from armature_api.deps import CallerDep, ReaderDep, StoreDep, scoped_router
from armature_api.rows import PageDep, find, newest_first, visible

router = scoped_router("artifacts", "artifacts")


@router.get("/base_models")
def list_base_models(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[BaseModelView]:
    """List the base models that this tenant may use, newest first; shared ones are among them."""
    rows, has_more = newest_first(session, BaseModel, visible(BaseModel, caller.tenant_id), page)
    return Page.of(service.base_model_views(session, rows), has_more)


@router.get("/base_models/{base_model_id}")
def get_base_model(base_model_id: str, caller: CallerDep, session: ReaderDep) -> BaseModelView:
    """Show a base model."""
    return service.base_model_views(session, [find(session, BaseModel, caller.tenant_id, base_model_id)])[0]


@router.get("/artifacts")
def list_artifacts(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[ArtifactView]:
    """List the artifacts that this tenant may use, newest first; shared ones are among them."""
    rows, has_more = newest_first(session, Artifact, visible(Artifact, caller.tenant_id), page)
    return Page.of([service.artifact_view(row, caller.tenant_id) for row in rows], has_more)


@router.get("/artifacts/{artifact_id}")
def get_artifact(artifact_id: str, caller: CallerDep, session: ReaderDep) -> ArtifactView:
    """Show an artifact."""
    return service.artifact_view(find(session, Artifact, caller.tenant_id, artifact_id), caller.tenant_id)


@router.get("/artifacts/{artifact_id}/manifest")
def get_manifest(artifact_id: str, caller: CallerDep, session: ReaderDep) -> ArtifactManifest:
    """The manifest; the sha256 of its canonical JSON is the artifact's digest."""
    return service.manifest_of(find(session, Artifact, caller.tenant_id, artifact_id))


def _download_folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="armature-download-") as folder:
        yield Path(folder)


# "request": the folder lives until the answer was sent
DownloadFolder = Annotated[Path, Depends(_download_folder, scope="request")]


class _Download(FileResponse):
    """A file; a Range that can not be served is ignored, as RFC 9110 allows, and the whole file is sent.

    Starlette would answer it with a plain 400 or an empty 416: the one place where an error had no envelope.
    """

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except (MalformedRangeHeader, RangeNotSatisfiable):
            return []  # no range: all of it


@router.get("/artifacts/{artifact_id}/files/{path:path}", response_class=FileResponse)
def get_artifact_file(
    artifact_id: str, path: str, caller: CallerDep, session: ReaderDep, store: StoreDep, folder: DownloadFolder
) -> FileResponse:
    """Download one file of an artifact. The ETag is its sha256; a Range that can not be served is ignored."""
    artifact = find(session, Artifact, caller.tenant_id, artifact_id)
    blob = service.find_blob(artifact, path)
    local = folder / "file"
    service.fetch_blob(store, artifact, blob, local)
    headers = {"ETag": f'"{blob.sha256}"', "X-Content-Type-Options": "nosniff"}
    return _Download(local, media_type="application/octet-stream", filename=path.rpartition("/")[2], headers=headers)
