"""Tenants and their API keys. Every change touches the serving revision, so decoders hear of it."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.tenants import (
    ApiKeyCreated,
    ApiKeyCreateRequest,
    ApiKeyView,
    TenantCreateRequest,
    TenantView,
    issue_key,
)
from armature.db.base import db_now
from armature.db.models import ApiKey, Tenant
from armature.errors import InvalidRequest, NameTaken
from armature_api.rows import insert, is_id, not_found
from armature_api.serving import touch_serving


def create_tenant(session: Session, request: TenantCreateRequest) -> Tenant:
    """A new tenant, without keys.

    Raises:
        NameTaken: There is a tenant of that name.
    """
    tenant = Tenant(name=request.name)
    insert(session, tenant, NameTaken("there is a tenant of that name already", param="name"))
    touch_serving(session)
    return tenant


def create_key(session: Session, tenant_id: str, request: ApiKeyCreateRequest) -> ApiKeyCreated:
    """Issue a key; the answer is the only place where its secret ever appears.

    Raises:
        NotFound: There is no such tenant.
        InvalidRequest: ``expires_at`` has passed already.
    """
    if not is_id(tenant_id) or session.get(Tenant, tenant_id) is None:
        raise not_found(Tenant)
    if request.expires_at is not None and request.expires_at <= session.scalars(select(db_now())).one():
        raise InvalidRequest("must lie in the future", param="expires_at")
    issued = issue_key()
    key = ApiKey(
        id=issued.key_id,
        tenant_id=tenant_id,
        name=request.name,
        secret_sha256=issued.secret_sha256,
        scopes=sorted(set(request.scopes)),
        expires_at=request.expires_at,
    )
    session.add(key)
    session.flush()
    touch_serving(session)
    return ApiKeyCreated(**key_view(key).model_dump(), token=issued.token)


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key for good; again changes nothing.

    Raises:
        NotFound: There is no such key.
    """
    key = session.get(ApiKey, key_id, with_for_update=True) if is_id(key_id) else None
    if key is None:
        raise not_found(ApiKey)
    if key.revoked_at is None:
        key.revoked_at = session.scalars(select(db_now())).one()
        touch_serving(session)
    return key


def tenant_view(tenant: Tenant) -> TenantView:
    """As the API shows it."""
    return TenantView(id=tenant.id, name=tenant.name, created_at=int(tenant.created_at))


def key_view(key: ApiKey) -> ApiKeyView:
    """As the API shows it, without the secret."""
    return ApiKeyView.model_validate(
        {
            "id": key.id,
            "tenant_id": key.tenant_id,
            "name": key.name,
            "scopes": key.scopes,
            "created_at": int(key.created_at),
            "expires_at": None if key.expires_at is None else int(key.expires_at),
            "revoked_at": None if key.revoked_at is None else int(key.revoked_at),
        }
    )
