"""``client.tenants`` and ``client.keys``; they need the scope ``platform``."""

from __future__ import annotations

from collections.abc import Iterable

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.errors import ConflictError
from armature.contracts.tenants import ApiKeyCreated, ApiKeyView, Scope, TenantView


class AsyncTenants:
    """Teams."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str) -> TenantView:
        """Create a tenant."""
        return await self._transport.get(TenantView, "POST", "tenants", json={"name": name})

    def list(self, *, limit: int = 100) -> AsyncPages[TenantView]:
        """Tenants, newest first."""
        return AsyncPages(self._transport, TenantView, "tenants", limit=limit)

    async def ensure(self, name: str) -> TenantView:
        """The tenant of that name, created if there is none."""
        try:
            return await self.create(name)
        except ConflictError:
            async for tenant in self.list():
                if tenant.name == name:
                    return tenant
            raise


class AsyncKeys:
    """API keys."""

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
        """Issue a key; the answer is the only place that holds its token."""
        chosen = {} if scopes is None else {"scopes": list(scopes)}
        body = {"name": name, "expires_at": expires_at, **chosen}
        return await self._transport.get(ApiKeyCreated, "POST", f"tenants/{tenant_id}/keys", json=body)

    async def revoke(self, key_id: str) -> ApiKeyView:
        """Revoke a key; decoders learn of it within seconds."""
        return await self._transport.get(ApiKeyView, "DELETE", f"keys/{key_id}")
