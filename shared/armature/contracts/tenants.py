"""Tenants, API keys and scopes."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Annotated, Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, UnixSeconds, View

Area = Literal["data", "jobs", "artifacts", "profiles", "harmful", "audit", "platform"]
"""What a router is about. A key needs ``<area>:read`` for its GET routes and ``<area>:write`` for the others."""

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
"""data: files and data sets. artifacts: artifacts and base models. profiles: profiles and aliases. harmful: what could
make a model do harm, in addition to the scope of its area. generate: the decoder. audit: the log of changes. platform:
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
"""What a key may do unless somebody asks for more: a tenant's daily work, without what is harmful."""

_KEY = re.compile(r"^ak_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$")


class IssuedKey(Contract):
    """A fresh key: the secret is in here once and nowhere afterwards."""

    key_id: str
    token: str
    secret_sha256: str


def issue_key() -> IssuedKey:
    """Draw a key ``ak_<id>_<secret>`` whose secret has 256 bits; only its sha256 is ever stored."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return IssuedKey(key_id=key_id, token=f"ak_{key_id}_{secret}", secret_sha256=hash_secret(secret))


def parse_key(token: str) -> tuple[str, str] | None:
    """Split a token into (key id, sha256 of its secret), or None if it is not of the form."""
    match = _KEY.match(token)
    return (match[1], hash_secret(match[2])) if match else None


def hash_secret(secret: str) -> str:
    """SHA-256 in hex. A 256-bit random secret needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


Limit = Annotated[int, Field(ge=0, lt=2**53)]


class TenantLimits(Contract):
    """How much a tenant may use; null is without end. Rates are per minute."""

    queued_jobs: Limit | None = Field(None, description="jobs that wait; more are refused")
    running_jobs: Limit | None = Field(None, description="jobs that run side by side; the others wait for their turn")
    stored_bytes: Limit | None = Field(None, description="files and artifacts together; uploads and jobs are refused")
    job_submissions_per_minute: Limit | None = Field(None, description="jobs submitted")
    requests_per_minute: Limit | None = Field(None, description="of the API, and again of each decoder process")
    tokens_per_minute: Limit | None = Field(None, description="of each decoder process: prompts and answers together")


class TenantUsage(View):
    """What of its limits a tenant uses now, counted from the rows themselves."""

    queued_jobs: int
    running_jobs: int
    stored_bytes: int
    job_submissions_per_minute: int


class TenantCreateRequest(Contract):
    """Create a tenant."""

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
    """A tenant and what it uses now."""

    usage: TenantUsage


class ApiKeyCreateRequest(Contract):
    """Issue a key for a tenant."""

    name: Name = "default"
    scopes: list[Scope] = Field(default=list(TENANT_SCOPES), min_length=1)
    expires_at: UnixSeconds | None = Field(None, description="has to lie in the future; null: never")


class ApiKeyRotateRequest(Contract):
    """Replace a key: the new one has its name, scopes and expiry."""

    overlap_seconds: int = Field(3600, ge=0, le=30 * 86_400, description="for which the old key still works")


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
    last_used_at: UnixSeconds | None = Field(None, description="at the API, to the minute; decoders do not tell")


class ApiKeyCreated(ApiKeyView):
    """The only answer that holds the secret."""

    token: str
