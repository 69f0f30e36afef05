"""The audit log: who changed what, each entry chained to the one before by its hash."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from armature.contracts.base import Sha256, View, digest


class AuditEntryView(View):
    """A change. ``before`` and ``after`` are digests of the rows that it touched, never the rows themselves."""

    object: Literal["audit.entry"] = "audit.entry"
    seq: int
    tenant_id: str
    created_at_ms: int = Field(description="milliseconds since the epoch, UTC")
    key_id: str | None = Field(description="whose change it is; null: the platform's own")
    action: str = Field(description="the operation, by its name in the OpenAPI document")
    target: str = Field(description="the first thing that it changed, such as `profiles/prf_...`")
    before: Sha256 | None
    after: Sha256 | None
    request_id: str | None
    address: str | None = Field(description="where the request came from")
    hash: Sha256 = Field(description="SHA-256 over the canonical JSON of all other fields and of `previous`")


class AuditVerification(View):
    """Whether a log is what was written: every hash, no gap, and its end."""

    object: Literal["audit.verification"] = "audit.verification"
    tenant_id: str
    entries: int
    intact: bool
    broken_at: int | None = Field(description="seq of the first entry that is not what was written")
    head: str = Field(description="hash of the last entry; keep it elsewhere to notice a log that was written anew")


def entry_hash(fields: dict[str, Any], previous: str) -> str:
    """The hash that chains an entry to the hash of the one before ("" for the first)."""
    return digest({**fields, "previous": previous})
