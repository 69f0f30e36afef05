"""``client.models``: the models that the decoder serves to this key."""

from __future__ import annotations

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.contracts.answers import ModelView


class AsyncModels:
    """Models: profile aliases that the decoder serves."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def retrieve(self, model: str) -> ModelView:
        """Retrieve a model and the state of its bundle."""
        return await self._transport.get(ModelView, "GET", f"models/{model}")

    def list(self) -> AsyncPages[ModelView]:
        """List the tenant's models."""
        return AsyncPages(self._transport, ModelView, "models")
