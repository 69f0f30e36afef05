"""``/v1/tenants`` and ``/v1/keys``, for keys with the platform scope."""

from __future__ import annotations

from sqlalchemy import true

from armature.contracts.pages import Page
from armature.contracts.tenants import (
    ApiKeyCreated,
    ApiKeyCreateRequest,
    ApiKeyView,
    TenantCreateRequest,
    TenantView,
)
from armature.db.models import Tenant
from armature_api.deps import ReaderDep, SessionDep, scoped_router
from armature_api.rows import PageDep, newest_first
from armature_api.tenants import service

router = scoped_router("tenants", "platform")


@router.post("/tenants", status_code=201)
def create_tenant(request: TenantCreateRequest, session: SessionDep) -> TenantView:
    """Create a tenant."""
    return service.tenant_view(service.create_tenant(session, request))


@router.get("/tenants")
def list_tenants(session: ReaderDep, page: PageDep) -> Page[TenantView]:
    """List tenants, newest first."""
    rows, has_more = newest_first(session, Tenant, true(), page)
    return Page.of([service.tenant_view(row) for row in rows], has_more)


@router.post("/tenants/{tenant_id}/keys", status_code=201)
def create_key(tenant_id: str, request: ApiKeyCreateRequest, session: SessionDep) -> ApiKeyCreated:
    """Issue a key for a tenant. The token is shown once."""
    return service.create_key(session, tenant_id, request)


@router.delete("/keys/{key_id}")
def revoke_key(key_id: str, session: SessionDep) -> ApiKeyView:
    """Revoke a key. Decoders stop accepting it within seconds."""
    return service.key_view(service.revoke_key(session, key_id))
