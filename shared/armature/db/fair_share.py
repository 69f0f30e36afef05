"""Fair share between tenants: which queued job starts next, whatever the order of submission.

A message in the broker is a ticket: it says that some job of a queue waits, not which one. A worker with a ticket asks
here for the job, so a thousand jobs of one tenant delay another tenant's by one job, not by a thousand. The tenant with
the fewest running jobs comes first; among equals, the one served longest ago.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ScalarSelect, and_, func, select, update
from sqlalchemy.orm import Session

from armature.contracts.tenants import TenantLimits
from armature.db.base import db_now
from armature.db.jobs import is_backed_off
from armature.db.models import Job, Tenant
from armature.db.transitions import is_leased


def next_job(session: Session, ticket: str) -> str | None:
    """Return the id of the job to start from the queue of ``ticket`` (a job's id); None if none may start.

    Tenants at their limit of running jobs are skipped.
    """
    queue = session.scalar(select(Job.queue).where(Job.id == ticket))
    oldest = (
        select(Job.id)
        .where(Job.tenant_id == Tenant.id, Job.queue == queue, Job.state == "queued", is_backed_off())
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .correlate(Tenant)
        .scalar_subquery()
    )
    statement = select(oldest.label("job_id"), _running().label("running"), Tenant.limits).order_by(
        "running", Tenant.served_at
    )
    for job_id, running, limits in session.execute(statement):
        if job_id is not None and _has_room(limits, running):
            return str(job_id)
    return None


def take_turn(session: Session, job_id: str) -> bool:
    """Record, in the transaction of the claim, that the job's tenant is being served.

    False, with the job due for dispatch again, if the tenant is at its limit of running jobs. The tenant's row is
    locked, so that two concurrent claims can not both take the last slot.
    """
    owner = select(Job.tenant_id).where(Job.id == job_id).scalar_subquery()
    locked = select(Tenant).where(Tenant.id == owner).with_for_update(key_share=True)
    tenant = session.scalars(locked.execution_options(populate_existing=True)).one_or_none()
    if tenant is None:
        return False
    running = session.scalars(select(_running()).select_from(Tenant).where(Tenant.id == tenant.id)).one()
    if _has_room(tenant.limits, running):
        tenant.served_at = session.scalars(select(db_now())).one()
        return True
    session.execute(update(Job).where(Job.id == job_id, Job.state == "queued").values(dispatched_at=None))
    return False


def full_tenants(session: Session) -> set[str]:
    """Return the tenants at their limit of running jobs, for which a message could start nothing."""
    running_jobs = and_(Job.tenant_id == Tenant.id, is_leased())
    counted = select(Tenant.id, func.count(Job.id), Tenant.limits).outerjoin(Job, running_jobs).group_by(Tenant.id)
    return {tenant_id for tenant_id, running, limits in session.execute(counted) if not _has_room(limits, running)}


def _running() -> ScalarSelect[int]:
    jobs = select(func.count()).select_from(Job).where(Job.tenant_id == Tenant.id, is_leased())
    return jobs.correlate(Tenant).scalar_subquery()


def _has_room(limits: dict[str, Any], running: int) -> bool:
    limit = TenantLimits.model_validate(limits).running_jobs
    return limit is None or running < limit
