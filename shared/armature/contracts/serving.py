"""The serving snapshot: the object in the store that lists the tenants, keys and models of a decoder.

The relay rewrites it whenever a profile alias, a key or a tenant changes; decoders poll it. It holds digests and key
hashes, no secrets. ``revision`` grows with each change of an installation, so a decoder never goes back.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, Sha256, UnixSeconds
from armature.contracts.profiles import ProfileManifest
from armature.contracts.tenants import Scope, TenantLimits

SNAPSHOT_KEY = "serving/snapshot.json"


class ServedKey(Contract):
    """An API key that a decoder accepts."""

    id: str
    secret_sha256: Sha256
    scopes: list[Scope]
    expires_at: UnixSeconds | None = None


class ServedVersion(Contract):
    """A profile version in service."""

    version: int
    created_at: UnixSeconds
    manifest: ProfileManifest


class ServedCanary(ServedVersion):
    """The version that serves a share of an alias' requests."""

    weight: float = Field(gt=0, lt=1)


class ServedModel(ServedVersion):
    """A profile alias: ``model`` is ``name@alias``, and for the live alias also ``name``."""

    profile: Name
    alias: Name
    canary: ServedCanary | None = None


class ServedTenant(Contract):
    """A tenant's keys, models and limits."""

    id: str
    name: Name
    limits: TenantLimits = TenantLimits()
    keys: list[ServedKey]
    models: list[ServedModel]


class ServingSnapshot(Contract):
    """The state of an installation that decoders serve."""

    schema_version: Literal[1] = 1
    installation: str
    revision: int = Field(ge=0)
    tenants: list[ServedTenant]
