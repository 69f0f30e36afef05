"""``/v1/artifacts``."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Query
from fastapi.responses import FileResponse

from armature.contracts.artifact_views import (
    ArtifactUpdateRequest,
    ArtifactView,
    LineageView,
    LinkCreateRequest,
    LinkView,
    VerificationView,
)
from armature.contracts.artifacts import ArtifactKind, ArtifactManifest
from armature.contracts.pages import Page
from armature.db.models import Artifact, Job
from armature_api.artifacts import service
from armature_api.artifacts.lineage import trace
from armature_api.deps import CallerDep, ReaderDep, SessionDep, StoreDep, scoped_router
from armature_api.kit.downloads import DownloadFolder, send_blob
from armature_api.kit.queries import PageDep, find, newest_first, visible_parts

router = scoped_router("artifacts", "artifacts")


@router.get("/artifacts")
def list_artifacts(
    caller: CallerDep,
    session: ReaderDep,
    page: PageDep,
    kind: Annotated[ArtifactKind | None, Query(description="only artifacts of this kind")] = None,
    job: Annotated[str | None, Query(max_length=40, description="only artifacts of this job")] = None,
) -> Page[ArtifactView]:
    """List the artifacts that this tenant may use, shared ones included, newest first."""
    filters = [Artifact.kind == kind] if kind else []
    filters += [Artifact.job_id == find(session, Job, caller.tenant_id, job, param="job").id] if job else []
    rows, has_more = newest_first(session, Artifact, visible_parts(Artifact, caller.tenant_id), page, filters)
    return Page.of([service.artifact_view(row, caller.tenant_id) for row in rows], has_more)


@router.get("/artifacts/{artifact_id}")
def get_artifact(artifact_id: str, caller: CallerDep, session: ReaderDep) -> ArtifactView:
    """Show an artifact."""
    return service.artifact_view(find(session, Artifact, caller.tenant_id, artifact_id), caller.tenant_id)


@router.patch("/artifacts/{artifact_id}")
def update_artifact(
    artifact_id: str, request: ArtifactUpdateRequest, caller: CallerDep, session: SessionDep
) -> ArtifactView:
    """Set how long an artifact is kept."""
    artifact = find(session, Artifact, caller.tenant_id, artifact_id)
    service.keep_until(session, artifact, caller.tenant_id, request.expires_at)
    return service.artifact_view(artifact, caller.tenant_id)


@router.delete("/artifacts/{artifact_id}", status_code=204)
def delete_artifact(artifact_id: str, caller: CallerDep, session: SessionDep) -> None:
    """Delete an artifact that no base model, profile version or unfinished job refers to."""
    service.delete(session, find(session, Artifact, caller.tenant_id, artifact_id), caller.tenant_id)


@router.get("/artifacts/{artifact_id}/lineage")
def get_lineage(artifact_id: str, caller: CallerDep, session: ReaderDep) -> LineageView:
    """Show what an artifact was made from, and what was made from it."""
    return trace(session, caller.tenant_id, find(session, Artifact, caller.tenant_id, artifact_id))


@router.get("/artifacts/{artifact_id}/manifest")
def get_manifest(artifact_id: str, caller: CallerDep, session: ReaderDep) -> ArtifactManifest:
    """Show the manifest; the sha256 of its canonical JSON is the artifact's digest."""
    return service.manifest_of(find(session, Artifact, caller.tenant_id, artifact_id))


@router.post("/artifacts/{artifact_id}/links", status_code=201)
def create_link(
    artifact_id: str, request: LinkCreateRequest, caller: CallerDep, session: ReaderDep, store: StoreDep
) -> LinkView:
    """Create a URL that downloads one file from the object store without a key, for a limited time."""
    artifact = service.find_readable(session, caller, artifact_id)
    expires_at = int(time.time()) + request.seconds
    return LinkView(url=service.sign_link(store, artifact, request.path, request.seconds), expires_at=expires_at)


@router.post("/artifacts/{artifact_id}/verify")
def verify_artifact(
    artifact_id: str, caller: CallerDep, session: ReaderDep, store: StoreDep, folder: DownloadFolder
) -> VerificationView:
    """Read all files of an artifact in the store and compare them with their digests."""
    return service.verify(store, find(session, Artifact, caller.tenant_id, artifact_id), folder)


@router.get("/artifacts/{artifact_id}/files/{path:path}", response_class=FileResponse)
def get_artifact_file(
    artifact_id: str, path: str, caller: CallerDep, session: ReaderDep, store: StoreDep, folder: DownloadFolder
) -> FileResponse:
    """Download one file of an artifact. The ETag is its sha256; a Range that can not be served is ignored."""
    artifact = service.find_readable(session, caller, artifact_id)
    blob = service.find_blob(artifact, path)
    return send_blob(store, artifact.tenant_id, blob.sha256, path.rpartition("/")[2], folder)
