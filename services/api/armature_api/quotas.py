"""Tenant quotas, counted from rows: such counts can not drift, and all processes share them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from armature.contracts.tenants import TenantLimits, TenantUsage
from armature.db.base import db_now
from armature.db.models import Artifact, File, Job, Tenant
from armature.errors import QuotaExceeded
from armature.http.rates import MINUTE, Clock, too_many
from armature_api.callers import Caller


def usage_of(session: Session, tenant_id: str) -> TenantUsage:
    """Count what the tenant uses of the limits that are counted from rows."""
    return TenantUsage(
        queued_jobs=_count(session, tenant_id, Job.state == "queued"),
        running_jobs=_count(session, tenant_id, Job.state == "running"),
        stored_bytes=stored_bytes(session, tenant_id),
        job_submissions_per_minute=_count(session, tenant_id, _recent()),
    )


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Sum the bytes of the tenant's files and artifacts; bytes that several of them share count for each."""
    return sum(
        session.scalars(select(func.coalesce(func.sum(table.bytes), 0)).where(table.tenant_id == tenant_id)).one()
        for table in (File, Artifact)
    )


def lock_limits(session: Session, caller: Caller) -> None:
    """Lock a limited tenant's row until the commit: concurrent requests could exceed a limit together."""
    if caller.limits != TenantLimits():
        session.execute(select(Tenant.id).where(Tenant.id == caller.tenant_id).with_for_update(key_share=True))


def check_job_quota(session: Session, caller: Caller) -> None:
    """Refuse a job beyond the tenant's limits.

    Raises:
        RateLimited: Too many jobs were submitted within a minute.
        QuotaExceeded: Too many jobs are queued, or too many bytes are stored.
    """
    rate, queued = caller.limits.job_submissions_per_minute, caller.limits.queued_jobs
    if rate is not None and _count(session, caller.tenant_id, _recent(), up_to=rate) >= rate:
        raise too_many(f"more than {rate} jobs a minute", Clock())
    if queued is not None and _count(session, caller.tenant_id, Job.state == "queued", up_to=queued) >= queued:
        raise QuotaExceeded(f"no more than {queued} jobs may wait")
    check_storage_quota(session, caller, 1)


def check_storage_quota(session: Session, caller: Caller, more: int) -> None:
    """Refuse ``more`` bytes beyond the tenant's limit.

    Raises:
        QuotaExceeded: The tenant would exceed its limit.
    """
    limit = caller.limits.stored_bytes
    if limit is not None and stored_bytes(session, caller.tenant_id) + more > limit:
        raise QuotaExceeded(f"no more than {limit} bytes may be stored")


def _recent() -> ColumnElement[bool]:
    return Job.created_at > db_now() - MINUTE


def _count(session: Session, tenant_id: str, where: ColumnElement[bool], up_to: int | None = None) -> int:
    """Count the tenant's jobs, at most ``up_to`` (None: all)."""
    jobs = select(Job.id).where(Job.tenant_id == tenant_id, where).limit(up_to).subquery()
    return session.scalars(select(func.count()).select_from(jobs)).one()
