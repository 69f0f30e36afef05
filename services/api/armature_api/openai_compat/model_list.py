"""Routes of ``/v1/models``: base models and served profiles, both models to OpenAI's clients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.base import UnixSeconds, View
from armature.contracts.pages import Page
from armature.contracts.profiles import LIVE_ALIAS
from armature.db.models import Artifact, BaseModel, Profile, ProfileAlias, ProfileVersion
from armature_api.deps import CallerDep, ReaderDep, scoped_router
from armature_api.kit.queries import not_found, visible

router = scoped_router("models", "jobs")


class ListedModel(View):
    """A model in OpenAI's shape."""

    id: str = Field(description="a base model's id, or the name that a decoder serves a profile under")
    object: Literal["model"] = "model"
    created: UnixSeconds
    owned_by: str
    root: str = Field(description="digest of the checkpoint or of the profile version")
    parent: str | None = Field(None, description="of a profile: the digest of its base checkpoint")


@router.get("/models")
def list_models(caller: CallerDep, session: ReaderDep) -> Page[ListedModel]:
    """List all base models and profiles on one page: OpenAI's clients request no second one."""
    return Page.of(_models(session, caller.tenant_id), False)


@router.get("/models/{model}")
def get_model(model: str, caller: CallerDep, session: ReaderDep) -> ListedModel:
    """Show a base model or a profile."""
    for known in _models(session, caller.tenant_id):
        if known.id == model:
            return known
    raise not_found(BaseModel)


def _models(session: Session, tenant_id: str) -> list[ListedModel]:
    bases = select(BaseModel, Artifact.digest).join(Artifact, Artifact.id == BaseModel.artifact_id)
    listed = [
        ListedModel(id=base.id, created=int(base.created_at), owned_by=base.tenant_id, root=digest)
        for base, digest in session.execute(bases.where(visible(BaseModel, tenant_id)).order_by(BaseModel.id))
    ]
    served = (
        select(Profile.name, ProfileAlias.alias, ProfileVersion)
        .join(ProfileAlias, ProfileAlias.profile_id == Profile.id)
        .join(
            ProfileVersion,
            (ProfileVersion.profile_id == Profile.id) & (ProfileVersion.version == ProfileAlias.version),
        )
        .where(Profile.tenant_id == tenant_id)
        .order_by(Profile.name, ProfileAlias.alias)
    )
    for name, alias, version in session.execute(served):
        listed.append(
            ListedModel(
                id=name if alias == LIVE_ALIAS else f"{name}@{alias}",
                created=int(version.created_at),
                owned_by=tenant_id,
                root=version.digest,
                parent=version.manifest["base"]["digest"],
            )
        )
    return listed
