"""Routes of ``/v1/audit``: a tenant's own log or, with the scope ``platform``, any tenant's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Query
from sqlalchemy.orm import Session

from armature.contracts.audit import AuditEntryView, AuditVerification
from armature.contracts.pages import Page
from armature.db.models import Tenant
from armature_api.audit import service
from armature_api.deps import CallerDep, ResourcesDep, SessionSlotDep, scoped_router, unit_of_work
from armature_api.kit.queries import is_id, not_found

router = scoped_router("audit", "audit")


def _log_owner(
    caller: CallerDep,
    tenant_id: Annotated[str | None, Query(description="by default your own; another's needs `platform`")] = None,
) -> str:
    if tenant_id is None or tenant_id == caller.tenant_id:
        return caller.tenant_id
    caller.require("platform", param="tenant_id")
    if not is_id(tenant_id):
        raise not_found(Tenant, "tenant_id")
    return tenant_id


LogOwner = Annotated[str, Depends(_log_owner)]


def _open_log(resources: ResourcesDep, owner: LogOwner, _: SessionSlotDep) -> Iterator[Session]:
    with unit_of_work(resources.readers, owner) as session:
        if session.get(Tenant, owner) is None:
            raise not_found(Tenant, "tenant_id")
        yield session


LogDep = Annotated[Session, Depends(_open_log, scope="function")]


@router.get("/audit")
def list_audit_entries(
    session: LogDep,
    owner: LogOwner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int | None, Query(ge=1, lt=2**53, description="seq of the last entry of the page before")] = None,
) -> Page[AuditEntryView]:
    """List the changes that a tenant's keys made, newest first."""
    entries, has_more = service.entries_before(session, owner, after, limit)
    return Page.of(entries, has_more, key="seq")


@router.get("/audit/verification")
def verify_audit_log(session: LogDep, owner: LogOwner) -> AuditVerification:
    """Check the hash chain of a tenant's log from its first entry to its head."""
    return service.verify(session, owner)
