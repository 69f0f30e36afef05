"""What a tenant uses, counted from the rows themselves: such counts can not drift, and all processes share them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from armature.contracts.tenants import TenantLimits, TenantUsage
from armature.db.base import db_now
from armature.db.models import Artifact, File, Job, Tenant
from armature.errors import QuotaExceeded
from armature.http.rates import MINUTE, too_many
from armature_api.callers import Caller


def usage_of(session: Session, tenant_id: str) -> TenantUsage:
    """Everything that limits are set on and rows tell."""
    return TenantUsage(
        queued_jobs=_count(session, tenant_id, Job.state == "queued"),
        running_jobs=_count(session, tenant_id, Job.state == "running"),
        stored_bytes=stored_bytes(session, tenant_id),
        job_submissions_per_minute=_count(session, tenant_id, _recent()),
    )


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Bytes of the tenant's files and artifacts. What several of them share is counted for each."""
    return sum(
        session.scalars(select(func.coalesce(func.sum(table.bytes), 0)).where(table.tenant_id == tenant_id)).one()
        for table in (File, Artifact)
    )


def take_turn(session: Session, caller: Caller) -> None:
    """Make requests of a tenant with limits wait for each other, so that none counts what another one adds."""
    if caller.limits != TenantLimits():
        session.execute(select(Tenant.id).where(Tenant.id == caller.tenant_id).with_for_update(key_share=True))


def check_job_quota(session: Session, caller: Caller) -> None:
    """Refuse one job more than the tenant's limits allow.

    Raises:
        RateLimited: Too many were submitted within a minute.
        QuotaExceeded: Too many wait, or too much is stored already.
    """
    rate, queued = caller.limits.job_submissions_per_minute, caller.limits.queued_jobs
    if rate is not None and _count(session, caller.tenant_id, _recent(), up_to=rate) >= rate:
        raise too_many(f"more than {rate} jobs a minute")
    if queued is not None and _count(session, caller.tenant_id, Job.state == "queued", up_to=queued) >= queued:
        raise QuotaExceeded(f"no more than {queued} jobs may wait")
    check_storage_quota(session, caller, 1)


def check_storage_quota(session: Session, caller: Caller, more: int) -> None:
    """Refuse bytes beyond the tenant's limit.

    Raises:
        QuotaExceeded: They would exceed it.
    """
    limit = caller.limits.stored_bytes
    if limit is not None and stored_bytes(session, caller.tenant_id) + more > limit:
        raise QuotaExceeded(f"no more than {limit} bytes may be stored")


def _recent() -> ColumnElement[bool]:
    return Job.created_at > db_now() - MINUTE


def _count(session: Session, tenant_id: str, where: ColumnElement[bool], up_to: int | None = None) -> int:
    """Jobs of the tenant; no more than ``up_to`` of them are looked at."""
    jobs = select(Job.id).where(Job.tenant_id == tenant_id, where).limit(up_to).subquery()
    return session.scalars(select(func.count()).select_from(jobs)).one()
