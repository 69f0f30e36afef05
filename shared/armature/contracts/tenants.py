"""Tenants, API keys and scopes."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Annotated, Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, UnixSeconds, View

Area = Literal["data", "jobs", "artifacts", "profiles", "harmful", "audit", "platform"]
"""Area of a router: a key needs ``<area>:read`` for its GET routes and ``<area>:write`` for the others."""

Scope = Literal[
    "data:read",
    "data:write",
    "jobs:read",
    "jobs:write",
    "artifacts:read",
    "artifacts:write",
    "profiles:read",
    "profiles:write",
    "harmful:read",
    "harmful:write",
    "generate",
    "audit:read",
    "platform",
]
"""data: files and data sets. artifacts: artifacts and base models. profiles: profiles and aliases. harmful: harmful
files and data sets, in addition to the scope of their area. generate: the decoder. audit: the audit log. platform:
tenants, keys, limits, shared results, server-side folders."""

TENANT_SCOPES: tuple[Scope, ...] = (
    "data:read",
    "data:write",
    "jobs:read",
    "jobs:write",
    "artifacts:read",
    "artifacts:write",
    "profiles:read",
    "profiles:write",
    "generate",
)
"""Default scopes of a key: a tenant's daily work, without harmful data."""

_KEY = re.compile(r"^ak_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$")


class IssuedKey(Contract):
    """A new key, with the only copy of its secret."""

    key_id: str
    token: str
    secret_sha256: str


def issue_key() -> IssuedKey:
    """Generate a key ``ak_<id>_<secret>`` whose secret has 256 bits; only its SHA-256 is ever stored."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return IssuedKey(key_id=key_id, token=f"ak_{key_id}_{secret}", secret_sha256=hash_secret(secret))


def parse_key(token: str) -> tuple[str, str] | None:
    """Split a token into (key id, SHA-256 of its secret); None if it has another form."""
    match = _KEY.match(token)
    return (match[1], hash_secret(match[2])) if match else None


def hash_secret(secret: str) -> str:
    """Compute the SHA-256 in hex. A 256-bit random secret needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


Limit = Annotated[int, Field(ge=0, lt=2**53)]


class TenantLimits(Contract):
    """A tenant's quotas and rate limits; null is unlimited."""

    queued_jobs: Limit | None = Field(None, description="waiting jobs; more are refused")
    running_jobs: Limit | None = Field(None, description="concurrently running jobs; the others stay queued")
    stored_bytes: Limit | None = Field(None, description="files and artifacts; beyond it uploads and jobs are refused")
    job_submissions_per_minute: Limit | None = Field(None, description="jobs submitted")
    requests_per_minute: Limit | None = Field(None, description="to the API, and separately to each decoder process")
    tokens_per_minute: Limit | None = Field(None, description="prompt and answer tokens, in each decoder process")


class TenantUsage(View):
    """A tenant's current usage of its limits, counted from the tables."""

    queued_jobs: int
    running_jobs: int
    stored_bytes: int
    job_submissions_per_minute: int


class TenantCreateRequest(Contract):
    """The creation of a tenant."""

    name: Name
    limits: TenantLimits = TenantLimits()


class TenantView(View):
    """A tenant."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: Name
    limits: TenantLimits
    created_at: UnixSeconds


class TenantDetailView(TenantView):
    """A tenant and its current usage."""

    usage: TenantUsage


class ApiKeyCreateRequest(Contract):
    """The creation of an API key for a tenant."""

    name: Name = "default"
    scopes: list[Scope] = Field(default=list(TENANT_SCOPES), min_length=1)
    expires_at: UnixSeconds | None = Field(None, description="must be in the future; null: never")


class ApiKeyRotateRequest(Contract):
    """The replacement of a key by one with the same name, scopes and expiry."""

    overlap_seconds: int = Field(3600, ge=0, le=30 * 86_400, description="how long the old key still works")


class ApiKeyView(View):
    """A key without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant_id: str
    name: str
    scopes: list[Scope]
    created_at: UnixSeconds
    expires_at: UnixSeconds | None = None
    revoked_at: UnixSeconds | None = None
    last_used_at: UnixSeconds | None = Field(None, description="last use at the API, to the minute; not at decoders")


class ApiKeyCreated(ApiKeyView):
    """A new key with its secret, which no other response contains."""

    token: str
