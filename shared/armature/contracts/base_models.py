"""Base models: named checkpoint artifacts, and movable aliases for them."""

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
    """The registration of a checkpoint made by a job, so that further jobs and profiles can use it."""

    name: Name
    artifact: str = Field(description="id of a checkpoint of the tenant, such as checkpoint.export's output")


class BaseModelAliasRequest(Contract):
    """The move of an alias to a base model. ``if_base_model`` makes it a compare-and-set."""

    base_model: str = Field(description="id of a base model")
    if_base_model: str | None = Field(None, description="id of the base model that the alias must point at now")


class BaseModelAliasView(View):
    """A tenant's alias of a base model, accepted wherever a base model's id is."""

    object: Literal["base_model.alias"] = "base_model.alias"
    alias: Name
    base_model: str
    updated_at: UnixSeconds
