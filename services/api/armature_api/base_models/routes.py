"""Routes of ``/v1/base_models`` and ``/v1/base_model_aliases``."""

from __future__ import annotations

from armature.contracts.base import Name
from armature.contracts.base_models import (
    BaseModelAliasRequest,
    BaseModelAliasView,
    BaseModelCreateRequest,
    BaseModelView,
)
from armature.contracts.pages import Page
from armature.db.models import BaseModel
from armature_api.base_models import service
from armature_api.deps import CallerDep, ReaderDep, SessionDep, scoped_router
from armature_api.inputs.references import find_artifact
from armature_api.kit.idempotency import OnceDep
from armature_api.kit.queries import PageDep, find, newest_first, visible_parts

router = scoped_router("base models", "artifacts")


@router.post("/base_models", status_code=201)
def create_base_model(
    request: BaseModelCreateRequest, caller: CallerDep, session: SessionDep, once: OnceDep
) -> BaseModelView:
    """Name one of the tenant's checkpoints, which then does not expire. It is shared if its artifact is."""

    def create() -> BaseModelView:
        artifact = find_artifact(session, caller.tenant_id, request.artifact, "checkpoint", param="artifact")
        return service.base_model_views(session, [service.create(session, caller.tenant_id, request.name, artifact)])[0]

    return once.answer(session, BaseModelView, request, create)


@router.get("/base_models")
def list_base_models(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[BaseModelView]:
    """List the base models that this tenant may use, shared ones included, newest first."""
    rows, has_more = newest_first(session, BaseModel, visible_parts(BaseModel, caller.tenant_id), page)
    return Page.of(service.base_model_views(session, rows), has_more)


@router.get("/base_models/{base_model_id}")
def get_base_model(base_model_id: str, caller: CallerDep, session: ReaderDep) -> BaseModelView:
    """Show a base model."""
    return service.base_model_views(session, [find(session, BaseModel, caller.tenant_id, base_model_id)])[0]


@router.delete("/base_models/{base_model_id}", status_code=204)
def delete_base_model(base_model_id: str, caller: CallerDep, session: SessionDep) -> None:
    """Delete a base model, unless something refers to it. Its checkpoint is an artifact and stays."""
    service.delete(session, caller.tenant_id, find(session, BaseModel, caller.tenant_id, base_model_id))


@router.get("/base_model_aliases")
def list_aliases(caller: CallerDep, session: ReaderDep) -> Page[BaseModelAliasView]:
    """List the tenant's aliases by name."""
    return Page.of(service.alias_views(session, caller.tenant_id), False, key="alias")


@router.put("/base_model_aliases/{alias}")
def move_alias(
    alias: Name, request: BaseModelAliasRequest, caller: CallerDep, session: SessionDep
) -> BaseModelAliasView:
    """Point an alias at a base model. Jobs and versions created before keep the model they have."""
    return service.move_alias(session, caller.tenant_id, alias, request)


@router.delete("/base_model_aliases/{alias}", status_code=204)
def delete_alias(alias: Name, caller: CallerDep, session: SessionDep) -> None:
    """Remove an alias."""
    service.delete_alias(session, caller.tenant_id, alias)
