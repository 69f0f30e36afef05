"""``client.tenants`` and ``client.keys``, which need the scope ``platform``, and ``client.audit``."""

from __future__ import annotations

from collections.abc import Iterable

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.errors import ConflictError
from armature.contracts.audit import AuditEntryView, AuditVerification
from armature.contracts.tenants import (
    ApiKeyCreated,
    ApiKeyView,
    Scope,
    TenantDetailView,
    TenantLimits,
    TenantView,
)


class AsyncTenants:
    """Tenants and their limits."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str) -> TenantView:
        """Create a tenant."""
        return await self._transport.get(TenantView, "POST", "tenants", json={"name": name})

    def list(self, *, limit: int = 100) -> AsyncPages[TenantView]:
        """List tenants, newest first."""
        return AsyncPages(self._transport, TenantView, "tenants", limit=limit)

    async def retrieve(self, tenant_id: str) -> TenantDetailView:
        """Retrieve a tenant with its limits and their usage."""
        return await self._transport.get(TenantDetailView, "GET", f"tenants/{tenant_id}")

    async def set_limits(self, tenant_id: str, limits: TenantLimits) -> TenantView:
        """Set the limits of a tenant."""
        body = limits.model_dump(mode="json")
        return await self._transport.get(TenantView, "PUT", f"tenants/{tenant_id}/limits", json=body)

    async def ensure(self, name: str) -> TenantView:
        """Retrieve the tenant of a name, created if missing."""
        try:
            return await self.create(name)
        except ConflictError:
            async for tenant in self.list():
                if tenant.name == name:
                    return tenant
            raise


class AsyncKeys:
    """API keys of tenants."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        tenant_id: str,
        *,
        scopes: Iterable[Scope] | None = None,
        name: str = "default",
        expires_at: int | None = None,
    ) -> ApiKeyCreated:
        """Issue a key; its token is in this answer alone."""
        chosen = {} if scopes is None else {"scopes": list(scopes)}
        body = {"name": name, "expires_at": expires_at, **chosen}
        return await self._transport.get(ApiKeyCreated, "POST", f"tenants/{tenant_id}/keys", json=body)

    async def revoke(self, key_id: str) -> ApiKeyView:
        """Revoke a key; decoders refuse it within seconds."""
        return await self._transport.get(ApiKeyView, "DELETE", f"keys/{key_id}")

    def list(self, tenant_id: str, *, limit: int = 100) -> AsyncPages[ApiKeyView]:
        """List a tenant's keys, newest first."""
        return AsyncPages(self._transport, ApiKeyView, f"tenants/{tenant_id}/keys", limit=limit)

    async def rotate(self, key_id: str, *, overlap_seconds: int = 3600) -> ApiKeyCreated:
        """Replace a key by a new one with the same scopes; the old one stays valid for ``overlap_seconds``."""
        body = {"overlap_seconds": overlap_seconds}
        return await self._transport.get(ApiKeyCreated, "POST", f"keys/{key_id}/rotate", json=body)


class AsyncAudit:
    """The audit log of changes."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, *, limit: int = 100) -> AsyncPages[AuditEntryView]:
        """List the entries of the key's tenant, newest first."""
        return AsyncPages(self._transport, AuditEntryView, "audit", limit=limit)

    async def verify(self) -> AuditVerification:
        """Let the platform check the hash chain of the entries."""
        return await self._transport.get(AuditVerification, "GET", "audit/verification")
