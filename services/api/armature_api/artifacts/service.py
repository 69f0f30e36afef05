"""Artifacts and the base models that are names for some of them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef, ArtifactView, BaseModelView, BlobRef
from armature.db.models import Artifact, BaseModel
from armature.errors import NotFound


def manifest_of(artifact: Artifact) -> ArtifactManifest:
    """The artifact's manifest."""
    return ArtifactManifest.model_validate(artifact.manifest)


def ref_of(artifact: Artifact) -> ArtifactRef:
    """What a worker or a decoder needs to fetch the artifact."""
    return ArtifactRef(digest=artifact.digest, manifest_key=artifact.manifest_key)


def find_blob(artifact: Artifact, path: str) -> BlobRef:
    """The artifact's file of that path.

    Raises:
        NotFound: It has no such file.
    """
    for file in manifest_of(artifact).files:
        if file.path == path:
            return file
    raise NotFound("the artifact has no such file")


def artifact_view(artifact: Artifact, tenant_id: str) -> ArtifactView:
    """As the API shows it to a tenant; of another tenant's shared artifact the job stays unnamed."""
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
        metadata=manifest.metadata,
        parents=manifest.parents,
    )


def base_model_views(session: Session, base_models: list[BaseModel]) -> list[BaseModelView]:
    """As the API shows them, each with facts of its checkpoint."""
    artifact_ids = {model.artifact_id for model in base_models}
    artifacts = {
        artifact.id: artifact for artifact in session.scalars(select(Artifact).where(Artifact.id.in_(artifact_ids)))
    }
    return [_base_model_view(model, artifacts[model.artifact_id]) for model in base_models]


def _base_model_view(model: BaseModel, artifact: Artifact) -> BaseModelView:
    metadata = artifact.manifest["metadata"]
    return BaseModelView(
        id=model.id,
        name=model.name,
        artifact_id=artifact.id,
        digest=artifact.digest,
        shared=model.shared,
        created_at=int(model.created_at),
        **{field: metadata[field] for field in _FROM_METADATA},
    )


_FROM_METADATA = ("model_digest", "tokenizer_digest", "architecture", "parameters", "license_note")
