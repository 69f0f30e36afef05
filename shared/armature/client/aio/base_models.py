"""``client.base_models``."""

from __future__ import annotations

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.wire import Call
from armature.contracts.base_models import BaseModelAliasView, BaseModelView


class AsyncBaseModels:
    """Base models: named checkpoints, and aliases of them."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str, artifact_id: str) -> BaseModelView:
        """Register a checkpoint artifact as a base model."""
        body = {"name": name, "artifact": artifact_id}
        return await self._transport.get(BaseModelView, "POST", "base_models", json=body)

    async def retrieve(self, base_model_id: str) -> BaseModelView:
        """Retrieve a base model."""
        return await self._transport.get(BaseModelView, "GET", f"base_models/{base_model_id}")

    def list(self, *, limit: int = 100) -> AsyncPages[BaseModelView]:
        """List base models, newest first."""
        return AsyncPages(self._transport, BaseModelView, "base_models", limit=limit)

    async def delete(self, base_model_id: str) -> None:
        """Remove a base model's name; refused while something refers to it."""
        await self._transport.send(Call("DELETE", f"base_models/{base_model_id}"))

    async def move_alias(self, alias: str, base_model: str, *, if_base_model: str | None = None) -> BaseModelAliasView:
        """Point an alias at a base model."""
        body = {"base_model": base_model, "if_base_model": if_base_model}
        return await self._transport.get(BaseModelAliasView, "PUT", f"base_model_aliases/{alias}", json=body)

    def list_aliases(self) -> AsyncPages[BaseModelAliasView]:
        """List the tenant's aliases."""
        return AsyncPages(self._transport, BaseModelAliasView, "base_model_aliases")

    async def delete_alias(self, alias: str) -> None:
        """Remove an alias."""
        await self._transport.send(Call("DELETE", f"base_model_aliases/{alias}"))
