"""Routes of ``/v1/tenants`` and ``/v1/keys``, for keys with the scope ``platform``."""

from __future__ import annotations

from sqlalchemy import true

from armature.contracts.pages import Page
from armature.contracts.tenants import (
    ApiKeyCreated,
    ApiKeyCreateRequest,
    ApiKeyRotateRequest,
    ApiKeyView,
    TenantCreateRequest,
    TenantDetailView,
    TenantLimits,
    TenantView,
)
from armature.db.models import ApiKey, Tenant
from armature_api.deps import PlatformReaderDep, PlatformSessionDep, scoped_router
from armature_api.kit.idempotency import OnceDep
from armature_api.kit.queries import PageDep, newest_first
from armature_api.tenants import service

router = scoped_router("tenants", "platform")


@router.post("/tenants", status_code=201)
def create_tenant(request: TenantCreateRequest, session: PlatformSessionDep, once: OnceDep) -> TenantView:
    """Create a tenant."""
    return once.answer(
        session, TenantView, request, lambda: service.tenant_view(service.create_tenant(session, request))
    )


@router.get("/tenants")
def list_tenants(session: PlatformReaderDep, page: PageDep) -> Page[TenantView]:
    """List tenants, newest first."""
    rows, has_more = newest_first(session, Tenant, [true()], page)
    return Page.of([service.tenant_view(row) for row in rows], has_more)


@router.get("/tenants/{tenant_id}")
def get_tenant(tenant_id: str, session: PlatformReaderDep) -> TenantDetailView:
    """Show a tenant, its limits and its present usage."""
    return service.tenant_detail(session, service.find_tenant(session, tenant_id))


@router.put("/tenants/{tenant_id}/limits")
def set_limits(tenant_id: str, request: TenantLimits, session: PlatformSessionDep) -> TenantView:
    """Replace a tenant's limits. Usage beyond them stays; decoders apply them within seconds."""
    return service.tenant_view(service.set_limits(session, tenant_id, request))


@router.get("/tenants/{tenant_id}/keys")
def list_keys(tenant_id: str, session: PlatformReaderDep, page: PageDep) -> Page[ApiKeyView]:
    """List a tenant's keys, revoked and expired ones included, newest first."""
    tenant = service.find_tenant(session, tenant_id)
    rows, has_more = newest_first(session, ApiKey, [ApiKey.tenant_id == tenant.id], page)
    return Page.of([service.key_view(row) for row in rows], has_more)


@router.post("/tenants/{tenant_id}/keys", status_code=201)
def create_key(
    tenant_id: str, request: ApiKeyCreateRequest, session: PlatformSessionDep, once: OnceDep
) -> ApiKeyCreated:
    """Issue a key for a tenant. The token is shown once; a repeat with the Idempotency-Key is a 409."""
    return once.answer(session, ApiKeyCreated, request, lambda: service.create_key(session, tenant_id, request))


@router.delete("/keys/{key_id}")
def revoke_key(key_id: str, session: PlatformSessionDep) -> ApiKeyView:
    """Revoke a key. Decoders stop accepting it within seconds."""
    return service.key_view(service.revoke_key(session, key_id))


@router.post("/keys/{key_id}/rotate", status_code=201)
def rotate_key(key_id: str, request: ApiKeyRotateRequest, session: PlatformSessionDep, once: OnceDep) -> ApiKeyCreated:
    """Replace a key by a new one of the same name, scopes and expiry. Both work until the overlap ends."""
    return once.answer(session, ApiKeyCreated, request, lambda: service.rotate_key(session, key_id, request))
