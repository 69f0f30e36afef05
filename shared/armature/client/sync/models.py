"""``client.models``: what the decoder serves to this key."""

from __future__ import annotations

from armature.client.sync.transport import Pages, Transport
from armature.contracts.answers import ModelView


class Models:
    """Profile aliases, as models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def retrieve(self, model: str) -> ModelView:
        """A model and the state of its bundle."""
        return self._transport.get(ModelView, "GET", f"models/{model}")

    def list(self) -> Pages[ModelView]:
        """The tenant's models."""
        return Pages(self._transport, ModelView, "models")
