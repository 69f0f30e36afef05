"""``client.models``: what the decoder serves to this key."""

from __future__ import annotations

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.contracts.answers import ModelView


class AsyncModels:
    """Profile aliases, as models."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def retrieve(self, model: str) -> ModelView:
        """A model and the state of its bundle."""
        return await self._transport.get(ModelView, "GET", f"models/{model}")

    def list(self) -> AsyncPages[ModelView]:
        """The tenant's models."""
        return AsyncPages(self._transport, ModelView, "models")
