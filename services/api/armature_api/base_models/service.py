"""Base models: named checkpoints. A reference is an id, an alias or the tenant's own name for a model."""

from __future__ import annotations

import re

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from armature.contracts.base_models import BaseModelAliasRequest, BaseModelAliasView, BaseModelView
from armature.db.base import db_now
from armature.db.base_models import register
from armature.db.models import Artifact, BaseModel, BaseModelAlias, Job, ProfileVersion
from armature.db.transitions import is_active
from armature.errors import InUse, NameTaken, NotFound, PermissionDenied, VersionConflict
from armature_api.artifacts.service import require_own
from armature_api.kit.queries import find, not_found, visible

_REFERENCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The form of an id, a name or an alias; any other text never reaches the database."""
_FROM_METADATA = (
    "model_digest",
    "tokenizer_digest",
    "architecture",
    "parameters",
    "dtype",
    "context_length",
    "license_note",
)


def find_base_model(session: Session, tenant_id: str, reference: str, *, param: str) -> BaseModel:
    """Find a base model by its id, an alias or one of the tenant's own names.

    Raises:
        NotFound: No base model that the tenant may see has it.
    """
    alias = select(BaseModelAlias.base_model_id).where(
        BaseModelAlias.tenant_id == tenant_id, BaseModelAlias.alias == reference
    )
    own_name = (BaseModel.tenant_id == tenant_id) & (BaseModel.name == reference)
    named = or_(BaseModel.id == reference, BaseModel.id.in_(alias), own_name)
    found = select(BaseModel).where(visible(BaseModel, tenant_id), named)
    model = session.scalars(found).one_or_none() if _REFERENCE.fullmatch(reference) else None
    if model is None:
        raise not_found(BaseModel, param)
    return model


def create(session: Session, tenant_id: str, name: str, checkpoint: Artifact) -> BaseModel:
    """Register a checkpoint as a base model; it no longer expires.

    Raises:
        PermissionDenied: Another tenant owns and shares it.
        NameTaken: The tenant has a base model, or an alias, of that name.
    """
    require_own(checkpoint, tenant_id, param="artifact")
    checkpoint.expires_at = None
    model = BaseModel(tenant_id=tenant_id, name=name, artifact_id=checkpoint.id, shared=checkpoint.shared)
    register(session, model, "name")
    return model


def delete(session: Session, tenant_id: str, model: BaseModel) -> None:
    """Delete a base model; its checkpoint stays.

    Raises:
        PermissionDenied: Another tenant owns and shares it.
        InUse: An alias, a profile version or an unfinished job refers to it.
    """
    if model.tenant_id != tenant_id:
        raise PermissionDenied("the base model is shared with you and is not yours to change", code="not_yours")
    alias = session.scalars(select(BaseModelAlias.alias).where(BaseModelAlias.base_model_id == model.id)).first()
    if alias is not None:
        raise InUse(f"the alias {alias} names it")
    versions = select(ProfileVersion.version).where(ProfileVersion.request["base_model"].as_string() == model.id)
    if session.scalars(versions.limit(1)).first() is not None:
        raise InUse("a version of a profile refers to it")
    input_id = Job.inputs["base_model"]["id"].as_string()  # a spec may name the model by an alias
    jobs = select(Job.id).where(input_id == model.artifact_id, is_active())
    if session.scalars(jobs.limit(1)).first() is not None:
        raise InUse("an unfinished job refers to it")
    session.delete(model)


def move_alias(session: Session, tenant_id: str, alias: str, request: BaseModelAliasRequest) -> BaseModelAliasView:
    """Point an alias at a base model.

    Raises:
        NotFound: The tenant may see no such base model.
        NameTaken: The tenant has a base model of that name.
        VersionConflict: The alias does not point at ``if_base_model``.
    """
    model = find(session, BaseModel, tenant_id, request.base_model, param="base_model")
    same_name = select(BaseModel.id).where(BaseModel.tenant_id == tenant_id, BaseModel.name == alias)
    if session.scalars(same_name).one_or_none() is not None:
        raise NameTaken("one of your base models has that name", param="alias")
    key = (tenant_id, alias)
    row = session.get(BaseModelAlias, key, with_for_update=True)
    if request.if_base_model is not None and request.if_base_model != (row.base_model_id if row else None):
        raise VersionConflict("the alias names another base model now", param="if_base_model")
    row = row or BaseModelAlias(tenant_id=tenant_id, alias=alias)
    row.base_model_id = model.id
    row.updated_at = session.scalars(select(db_now())).one()
    session.add(row)
    session.flush()
    return _alias_view(row)


def alias_views(session: Session, tenant_id: str) -> list[BaseModelAliasView]:
    """List the tenant's aliases by name."""
    rows = select(BaseModelAlias).where(BaseModelAlias.tenant_id == tenant_id).order_by(BaseModelAlias.alias)
    return [_alias_view(row) for row in session.scalars(rows)]


def delete_alias(session: Session, tenant_id: str, alias: str) -> None:
    """Remove an alias.

    Raises:
        NotFound: The tenant has no such alias.
    """
    row = session.get(BaseModelAlias, (tenant_id, alias))
    if row is None:
        raise NotFound("there is no such alias")
    session.delete(row)


def base_model_views(session: Session, base_models: list[BaseModel]) -> list[BaseModelView]:
    """Build the views, each with its checkpoint's metadata."""
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
        bytes=artifact.bytes,
        shared=model.shared,
        created_at=int(model.created_at),
        **{field: metadata[field] for field in _FROM_METADATA},
    )


def _alias_view(row: BaseModelAlias) -> BaseModelAliasView:
    return BaseModelAliasView(alias=row.alias, base_model=row.base_model_id, updated_at=int(row.updated_at))
