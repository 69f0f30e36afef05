"""``/v1/artifacts`` and ``/v1/base_models``."""

from __future__ import annotations

from fastapi.responses import FileResponse

from armature.contracts.artifacts import ArtifactManifest, ArtifactView, BaseModelView
from armature.contracts.pages import Page
from armature.db.models import Artifact, BaseModel
from armature_api.artifacts import service
from armature_api.deps import CallerDep, ReaderDep, StoreDep, scoped_router
from armature_api.downloads import DownloadFolder, send_blob
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


@router.get("/artifacts/{artifact_id}/files/{path:path}", response_class=FileResponse)
def get_artifact_file(
    artifact_id: str, path: str, caller: CallerDep, session: ReaderDep, store: StoreDep, folder: DownloadFolder
) -> FileResponse:
    """Download one file of an artifact. The ETag is its sha256; a Range that can not be served is ignored."""
    artifact = find(session, Artifact, caller.tenant_id, artifact_id)
    blob = service.find_blob(artifact, path)
    return send_blob(store, artifact.tenant_id, blob.sha256, path.rpartition("/")[2], folder)
