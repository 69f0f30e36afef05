"""Artifacts: show, download, verify, keep and delete them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.artifact_views import ArtifactView, FileVerification, VerificationView
from armature.contracts.artifacts import ArtifactManifest, ArtifactRef, BlobRef
from armature.db.artifacts import users_of
from armature.db.base import db_now
from armature.db.models import Artifact
from armature.errors import ArtifactCorrupt, Conflict, InUse, InvalidRequest, NotFound, PermissionDenied
from armature.storage.artifacts import blob_key, fetch_object
from armature.storage.base import ArtifactStore
from armature_api.callers import Caller
from armature_api.kit.queries import find


def manifest_of(artifact: Artifact) -> ArtifactManifest:
    """Read the artifact's manifest."""
    return ArtifactManifest.model_validate(artifact.manifest)


def ref_of(artifact: Artifact) -> ArtifactRef:
    """Build the reference by which a worker or a decoder fetches the artifact."""
    return ArtifactRef(digest=artifact.digest, manifest_key=artifact.manifest_key)


def find_readable(session: Session, caller: Caller, artifact_id: str) -> Artifact:
    """Find an artifact whose bytes the caller may read; a harm vector, if added, makes a model harmful.

    Raises:
        NotFound: The tenant may not see it.
        PermissionDenied: It is a harm vector, and the key lacks ``harmful:read``.
    """
    artifact = find(session, Artifact, caller.tenant_id, artifact_id)
    if artifact.kind == "task_vector":
        caller.require("harmful:read")
    return artifact


def find_blob(artifact: Artifact, path: str) -> BlobRef:
    """Find the artifact's file at ``path``.

    Raises:
        NotFound: It has no such file.
    """
    for file in manifest_of(artifact).files:
        if file.path == path:
            return file
    raise NotFound("the artifact has no such file")


def artifact_view(artifact: Artifact, tenant_id: str) -> ArtifactView:
    """Build the view for a tenant; it hides the job of another tenant's shared artifact."""
    manifest = manifest_of(artifact)
    return ArtifactView(
        id=artifact.id,
        kind=manifest.kind,
        name=artifact.name,
        digest=artifact.digest,
        job_id=artifact.job_id if artifact.tenant_id == tenant_id else None,
        shared=artifact.shared,
        bytes=artifact.bytes,
        created_at=int(artifact.created_at),
        expires_at=None if artifact.expires_at is None else int(artifact.expires_at),
        metadata=manifest.metadata,
        parents=manifest.parents,
    )


def sign_link(store: ArtifactStore, artifact: Artifact, path: str, seconds: int) -> str:
    """Create a URL that downloads one file of the artifact for ``seconds``.

    Raises:
        NotFound: It has no such file.
        Conflict: The installation's store has no links.
    """
    blob = find_blob(artifact, path)
    url = store.link(blob_key(artifact.tenant_id, blob.sha256), seconds, path.rpartition("/")[2])
    if url is None:
        raise Conflict("this installation's store gives no links; download the file itself", code="no_links")
    return url


def verify(store: ArtifactStore, artifact: Artifact, folder: Path) -> VerificationView:
    """Read every file of the artifact into ``folder``, one at a time, and compare it with its digest."""
    files = [_verify_file(store, artifact, blob, folder / "file") for blob in manifest_of(artifact).files]
    return VerificationView(artifact_id=artifact.id, ok=all(file.ok for file in files), files=files)


def _verify_file(store: ArtifactStore, artifact: Artifact, blob: BlobRef, path: Path) -> FileVerification:
    try:
        fetch_object(store, blob_key(artifact.tenant_id, blob.sha256), path, blob.sha256)
    except ArtifactCorrupt as error:
        return FileVerification(path=blob.path, ok=False, problem=error.message)
    finally:
        path.unlink(missing_ok=True)
    return FileVerification(path=blob.path, ok=True)


def keep_until(session: Session, artifact: Artifact, tenant_id: str, expires_at: int | None) -> None:
    """Set when the artifact may be deleted; None: never.

    Raises:
        PermissionDenied: Another tenant owns and shares it.
        InvalidRequest: ``expires_at`` has passed.
        InUse: Something refers to it.
    """
    require_own(artifact, tenant_id)
    if expires_at is not None and expires_at <= session.scalars(select(db_now())).one():
        raise InvalidRequest("that time has passed", param="expires_at")
    if expires_at is not None:
        _require_unused(session, artifact)
    artifact.expires_at = expires_at


def delete(session: Session, artifact: Artifact, tenant_id: str) -> None:
    """Let the artifact expire now: it is no longer found, and a later sweep deletes its bytes.

    Raises:
        PermissionDenied: Another tenant owns and shares it.
        InUse: Something refers to it.
    """
    require_own(artifact, tenant_id)
    _require_unused(session, artifact)
    artifact.expires_at = session.scalars(select(db_now())).one()


def require_own(artifact: Artifact, tenant_id: str, *, param: str | None = None) -> None:
    """Refuse to change an artifact that is only shared with the tenant.

    Raises:
        PermissionDenied: Another tenant owns it.
    """
    if artifact.tenant_id != tenant_id:
        message = "the artifact is shared with you and is not yours to change"
        raise PermissionDenied(message, param=param, code="not_yours")


def _require_unused(session: Session, artifact: Artifact) -> None:
    if (user := next(users_of(session, artifact), None)) is not None:
        raise InUse(f"{user} refers to it")
