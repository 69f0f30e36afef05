"""Tenants and their API keys. Every change raises the serving revision, which decoders follow."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.tenants import (
    ApiKeyCreated,
    ApiKeyCreateRequest,
    ApiKeyRotateRequest,
    ApiKeyView,
    TenantCreateRequest,
    TenantDetailView,
    TenantLimits,
    TenantView,
    issue_key,
)
from armature.db.base import db_now
from armature.db.models import ApiKey, Tenant
from armature.errors import Conflict, InvalidRequest, NameTaken
from armature_api.kit.queries import insert, is_id, not_found
from armature_api.quotas import usage_of
from armature_api.relay.serving_snapshot import touch_serving


def create_tenant(session: Session, request: TenantCreateRequest) -> Tenant:
    """Insert a tenant without keys.

    Raises:
        NameTaken: Another tenant has the name.
    """
    tenant = Tenant(name=request.name, limits=request.limits.model_dump())
    insert(session, tenant, NameTaken("there is a tenant of that name already", param="name"))
    touch_serving(session)
    return tenant


def find_tenant(session: Session, tenant_id: str) -> Tenant:
    """Find a tenant by its id.

    Raises:
        NotFound: No tenant has the id.
    """
    tenant = session.get(Tenant, tenant_id) if is_id(tenant_id) else None
    if tenant is None:
        raise not_found(Tenant)
    return tenant


def set_limits(session: Session, tenant_id: str, limits: TenantLimits) -> Tenant:
    """Replace a tenant's limits.

    Raises:
        NotFound: No tenant has the id.
    """
    tenant = find_tenant(session, tenant_id)
    tenant.limits = limits.model_dump()
    session.flush()
    touch_serving(session)
    return tenant


def create_key(session: Session, tenant_id: str, request: ApiKeyCreateRequest) -> ApiKeyCreated:
    """Issue a key; its secret appears in the returned view only.

    Raises:
        NotFound: No tenant has the id.
        InvalidRequest: ``expires_at`` has passed.
    """
    find_tenant(session, tenant_id)
    if request.expires_at is not None and request.expires_at <= session.scalars(select(db_now())).one():
        raise InvalidRequest("must lie in the future", param="expires_at")
    return _issue(session, tenant_id, request.name, sorted(set(request.scopes)), request.expires_at)


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key for good; revoking it again changes nothing.

    Raises:
        NotFound: No key has the id.
    """
    key = _lock_key(session, key_id)
    if key.revoked_at is None:
        key.revoked_at = session.scalars(select(db_now())).one()
        touch_serving(session)
    return key


def rotate_key(session: Session, key_id: str, request: ApiKeyRotateRequest) -> ApiKeyCreated:
    """Issue a successor of a key; the old key expires after the overlap, or earlier as it would anyway.

    Raises:
        NotFound: No key has the id.
        Conflict: The key is revoked or has expired.
    """
    old, now = _lock_key(session, key_id), session.scalars(select(db_now())).one()
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict("the key is revoked or has expired", param="key_id")
    expires_at, overlap_ends = old.expires_at, now + request.overlap_seconds
    old.expires_at = overlap_ends if expires_at is None else min(expires_at, overlap_ends)
    return _issue(session, old.tenant_id, old.name, old.scopes, expires_at)


def _lock_key(session: Session, key_id: str) -> ApiKey:
    key = session.get(ApiKey, key_id, with_for_update=True) if is_id(key_id) else None
    if key is None:
        raise not_found(ApiKey)
    return key


def _issue(session: Session, tenant_id: str, name: str, scopes: list[str], expires_at: float | None) -> ApiKeyCreated:
    issued = issue_key()
    key = ApiKey(
        id=issued.key_id,
        tenant_id=tenant_id,
        name=name,
        secret_sha256=issued.secret_sha256,
        scopes=scopes,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    touch_serving(session)
    return ApiKeyCreated(**key_view(key).model_dump(), token=issued.token)


def tenant_view(tenant: Tenant) -> TenantView:
    """Build the tenant's view."""
    return TenantView.model_validate(_tenant_fields(tenant))


def tenant_detail(session: Session, tenant: Tenant) -> TenantDetailView:
    """Build the tenant's view with its present usage."""
    return TenantDetailView.model_validate({**_tenant_fields(tenant), "usage": usage_of(session, tenant.id)})


def key_view(key: ApiKey) -> ApiKeyView:
    """Build the key's view, without its secret."""
    return ApiKeyView.model_validate(
        {
            "id": key.id,
            "tenant_id": key.tenant_id,
            "name": key.name,
            "scopes": key.scopes,
            "created_at": int(key.created_at),
            "expires_at": None if key.expires_at is None else int(key.expires_at),
            "revoked_at": None if key.revoked_at is None else int(key.revoked_at),
            "last_used_at": None if key.last_used_at is None else int(key.last_used_at),
        }
    )


def _tenant_fields(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "limits": TenantLimits.model_validate(tenant.limits),
        "created_at": int(tenant.created_at),
    }
