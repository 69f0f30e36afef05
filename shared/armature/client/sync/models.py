"""``client.models``: the models that the decoder serves to this key."""

from __future__ import annotations

from armature.client.sync.transport import Pages, Transport
from armature.contracts.answers import ModelView


class Models:
    """Models: profile aliases that the decoder serves."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def retrieve(self, model: str) -> ModelView:
        """Retrieve a model and the state of its bundle."""
        return self._transport.get(ModelView, "GET", f"models/{model}")

    def list(self) -> Pages[ModelView]:
        """List the tenant's models."""
        return Pages(self._transport, ModelView, "models")
