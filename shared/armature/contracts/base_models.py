"""Base models: names for checkpoint artifacts, and movable aliases for them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, Sha256, UnixSeconds, View


class BaseModelView(View):
    """A registered base model: a name for a checkpoint artifact."""

    id: str
    object: Literal["base_model"] = "base_model"
    name: Name
    artifact_id: str
    digest: Sha256
    model_digest: Sha256
    tokenizer_digest: Sha256
    architecture: str
    parameters: int
    dtype: str
    context_length: int = Field(description="tokens")
    bytes: int
    shared: bool
    created_at: UnixSeconds
    license_note: str | None = None


class BaseModelCreateRequest(Contract):
    """Give a checkpoint that a job has made a name, so that further jobs and profiles can start from it."""

    name: Name
    artifact: str = Field(description="id of a checkpoint of your own, such as checkpoint.export's")


class BaseModelAliasRequest(Contract):
    """Let an alias name a base model. ``if_base_model`` makes it a compare-and-set."""

    base_model: str = Field(description="id of a base model")
    if_base_model: str | None = Field(None, description="the id that the alias must name now")


class BaseModelAliasView(View):
    """A name of the tenant's own that stands for a base model, wherever a base model's id is asked for."""

    object: Literal["base_model.alias"] = "base_model.alias"
    alias: Name
    base_model: str
    updated_at: UnixSeconds
