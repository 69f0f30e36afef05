"""Tenants, API keys and scopes."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal

from pydantic import Field

from armature.contracts.base import Contract, Name, UnixSeconds, View

Scope = Literal["platform", "jobs", "profiles", "generate"]
"""platform: tenants, keys, shared results, server-side folders. jobs: files, data sets, models, jobs, artifacts.
profiles: profiles and aliases. generate: the decoder."""

TENANT_SCOPES: tuple[Scope, ...] = ("jobs", "profiles", "generate")

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


class TenantCreateRequest(Contract):
    """Create a tenant."""

    name: Name


class TenantView(View):
    """A tenant."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: Name
    created_at: UnixSeconds


class ApiKeyCreateRequest(Contract):
    """Issue a key for a tenant."""

    name: Name = "default"
    scopes: list[Scope] = Field(default=list(TENANT_SCOPES), min_length=1)
    expires_at: UnixSeconds | None = None


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


class ApiKeyCreated(ApiKeyView):
    """The only answer that holds the secret."""

    token: str
