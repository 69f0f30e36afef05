"""``client.base_models``."""

from __future__ import annotations

from armature.client.sync.transport import Pages, Transport
from armature.client.wire import Call
from armature.contracts.base_models import BaseModelAliasView, BaseModelView


class BaseModels:
    """Base models: named checkpoints, and aliases of them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, artifact_id: str) -> BaseModelView:
        """Register a checkpoint artifact as a base model."""
        body = {"name": name, "artifact": artifact_id}
        return self._transport.get(BaseModelView, "POST", "base_models", json=body)

    def retrieve(self, base_model_id: str) -> BaseModelView:
        """Retrieve a base model."""
        return self._transport.get(BaseModelView, "GET", f"base_models/{base_model_id}")

    def list(self, *, limit: int = 100) -> Pages[BaseModelView]:
        """List base models, newest first."""
        return Pages(self._transport, BaseModelView, "base_models", limit=limit)

    def delete(self, base_model_id: str) -> None:
        """Remove a base model's name; refused while something refers to it."""
        self._transport.send(Call("DELETE", f"base_models/{base_model_id}"))

    def move_alias(self, alias: str, base_model: str, *, if_base_model: str | None = None) -> BaseModelAliasView:
        """Point an alias at a base model."""
        body = {"base_model": base_model, "if_base_model": if_base_model}
        return self._transport.get(BaseModelAliasView, "PUT", f"base_model_aliases/{alias}", json=body)

    def list_aliases(self) -> Pages[BaseModelAliasView]:
        """List the tenant's aliases."""
        return Pages(self._transport, BaseModelAliasView, "base_model_aliases")

    def delete_alias(self, alias: str) -> None:
        """Remove an alias."""
        self._transport.send(Call("DELETE", f"base_model_aliases/{alias}"))
