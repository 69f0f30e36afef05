"""Write the audit log: a request's unit of work adds one entry in the transaction of its changes.

Routes need not write entries: a hook on flush collects the rows that a session changes.
"""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session, UOWTransaction, sessionmaker

from armature.contracts.audit import entry_hash
from armature.contracts.base import digest
from armature.db.base import Base, db_now
from armature.db.models import AuditEntry, AuditHead, IdempotencyKey
from armature.errors import Conflict
from armature.http.request_id import request_id
from armature_api.kit.queries import insert

_CHANGES = "audit_changes"
_State = dict[str, Any]
_Change = tuple[str, _State | None, _State | None]
HASHED = (
    "tenant_id",
    "seq",
    "created_at_ms",
    "key_id",
    "action",
    "target",
    "before",
    "after",
    "request_id",
    "address",
)


def watch(writers: sessionmaker[Session]) -> None:
    """Collect the changes that sessions of this factory flush after their :func:`begin`."""
    event.listen(writers, "after_flush", _collect_changes)


def begin(session: Session) -> None:
    """Start to collect the session's changes."""
    session.info[_CHANGES] = []


def record(session: Session, tenant_id: str, key_id: str | None, action: str, address: str | None = None) -> None:
    """Write the collected changes as one entry of the tenant's log; none if nothing changed."""
    session.flush()
    changes: list[_Change] = session.info.pop(_CHANGES, [])
    if not changes:
        return
    head = _lock_head(session, tenant_id)
    fields = {
        "tenant_id": tenant_id,
        "seq": head.seq + 1,
        "created_at_ms": int(session.scalars(select(db_now())).one() * 1000),
        "key_id": key_id,
        "action": action,
        "target": changes[0][0],
        "before": _digest({target: before for target, before, _ in changes if before is not None}),
        "after": _digest({target: after for target, _, after in changes if after is not None}),
        "request_id": request_id.get(),
        "address": address,
    }
    entry = AuditEntry(**fields, hash=entry_hash(fields, head.hash))
    session.add(entry)
    head.seq, head.hash = entry.seq, entry.hash
    session.flush()


def _lock_head(session: Session, tenant_id: str) -> AuditHead:
    """Lock the head of the tenant's log until the commit, so that entries are chained one at a time."""
    head = session.get(AuditHead, tenant_id, with_for_update=True)
    if head is None:
        with contextlib.suppress(Conflict):  # a concurrent request created the head
            insert(session, AuditHead(tenant_id=tenant_id, seq=0, hash=""), Conflict("the log exists"))
        head = session.get_one(AuditHead, tenant_id, with_for_update=True, populate_existing=True)
    return head


def _collect_changes(session: Session, _: UOWTransaction) -> None:
    changes: list[_Change] | None = session.info.get(_CHANGES)
    if changes is None:
        return
    for row in session.new:
        if not isinstance(row, IdempotencyKey):  # repeats the change that it guards
            changes.append((_target(row), None, _after(row)))
    for row in session.dirty:
        if session.is_modified(row, include_collections=False) and not isinstance(row, IdempotencyKey):
            changes.append((_target(row), _before(row), _after(row)))
    for row in session.deleted:
        changes.append((_target(row), _before(row), None))


def _target(row: Base) -> str:
    state = inspect(row)
    key = state.identity or [getattr(row, column.name) for column in state.mapper.primary_key]
    return "/".join([row.__tablename__, *map(str, key)])


def _after(row: Base) -> _State:
    return {name: value for name, value in inspect(row).dict.items() if _is_plain(value)}


def _before(row: Base) -> _State:
    histories = {attribute.key: attribute.history for attribute in inspect(row).attrs}
    earlier = {name: history.deleted[0] for name, history in histories.items() if history.deleted}
    return {**_after(row), **{name: value for name, value in earlier.items() if _is_plain(value)}}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | dict | list)


def _digest(states: dict[str, _State]) -> str | None:
    return digest(states) if states else None
