"""Read the audit log and check its hash chain."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.audit import AuditEntryView, AuditVerification, entry_hash
from armature.db.models import AuditEntry, AuditHead
from armature_api.audit.trail import HASHED
from armature_api.kit.queries import numbered_below


def entries_before(session: Session, tenant_id: str, seq: int | None, limit: int) -> tuple[list[AuditEntryView], bool]:
    """List the tenant's entries below number ``seq`` (None: all), newest first, and whether more follow."""
    statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)
    entries, has_more = numbered_below(session, statement, AuditEntry.seq, seq, limit)
    return [_view(entry) for entry in entries], has_more


def verify(session: Session, tenant_id: str) -> AuditVerification:
    """Check the tenant's chain of hashes from its first entry to its head."""
    hash, count, broken_at = "", 0, None
    statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id).order_by(AuditEntry.seq)
    for entry in session.scalars(statement.execution_options(yield_per=1000)):
        count += 1
        if entry.seq != count or entry.hash != entry_hash({name: getattr(entry, name) for name in HASHED}, hash):
            broken_at = count
            break
        hash = entry.hash
    head = session.get(AuditHead, tenant_id)
    if broken_at is None and (head.seq if head else 0, head.hash if head else "") != (count, hash):
        broken_at = count + 1  # entries after this one were deleted
    return AuditVerification(
        tenant_id=tenant_id, entries=count, intact=broken_at is None, broken_at=broken_at, head=hash
    )


def _view(entry: AuditEntry) -> AuditEntryView:
    return AuditEntryView.model_validate({name: getattr(entry, name) for name in (*HASHED, "hash")})
