"""The audit log: each change and the key that made it, chained to the entry before by its hash."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from armature.contracts.base import Sha256, View, digest


class AuditEntryView(View):
    """A change. ``before`` and ``after`` are digests of the changed rows, never the rows themselves."""

    object: Literal["audit.entry"] = "audit.entry"
    seq: int
    tenant_id: str
    created_at_ms: int = Field(description="milliseconds since the epoch, UTC")
    key_id: str | None = Field(description="the API key that made the change; null: the platform itself")
    action: str = Field(description="the operation's name in the OpenAPI document")
    target: str = Field(description="the first resource that it changed, such as `profiles/prf_...`")
    before: Sha256 | None
    after: Sha256 | None
    request_id: str | None
    address: str | None = Field(description="the client's address")
    hash: Sha256 = Field(description="SHA-256 over the canonical JSON of all other fields and of `previous`")


class AuditVerification(View):
    """The result of verifying a log: every hash, no gap, and its end."""

    object: Literal["audit.verification"] = "audit.verification"
    tenant_id: str
    entries: int
    intact: bool
    broken_at: int | None = Field(description="seq of the first entry that was altered")
    head: str = Field(description="hash of the last entry; keep a copy elsewhere to detect a rewritten log")


def entry_hash(fields: dict[str, Any], previous: str) -> str:
    """Compute an entry's hash, chained to the hash of the entry before ("" for the first)."""
    return digest({**fields, "previous": previous})
