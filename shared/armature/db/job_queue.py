"""The relay's steps of the job protocol: dispatch from the outbox, expire leases, rank the queue."""

from __future__ import annotations

from collections.abc import Sequence, Set

from sqlalchemy import ColumnElement, Row, func, or_, select, update
from sqlalchemy.orm import Session

from armature.contracts.errors import ErrorObject
from armature.db import transitions
from armature.db.base import db_now
from armature.db.jobs import is_backed_off
from armature.db.models import Job
from armature.db.transitions import Event, Guards, Lease
from armature.errors import WorkerLost

QUEUE_HORIZON = 1000
"""Positions beyond it are not counted, so that a request's cost does not grow with the queue."""


def expire_leases(session: Session, limit: int = 100) -> list[Job]:
    """Expire overdue leases and return the jobs that moved.

    A requested cancellation or pause is carried out; otherwise the job is requeued while attempts are left, then failed
    with :class:`armature.errors.WorkerLost`.
    """
    overdue = [transitions.is_leased(), Job.lease_until < db_now()]
    expired = session.scalars(select(Job).where(*overdue).limit(limit).with_for_update(skip_locked=True)).all()
    moved = [_expire(session, job, [*Lease(job.id, job.fence).holds(), *overdue]) for job in expired]
    return [job for job in moved if job is not None]


Due = Row[tuple[str, str, float | None]]
"""``id``, ``queue`` and ``dispatched_at`` (None if never sent) of a job that may have to be dispatched."""


def due_for_dispatch(
    session: Session, resend_after: float, limit: int = 100, full_tenants: Set[str] = frozenset()
) -> list[Due]:
    """List queued jobs to dispatch: never sent, or not claimed within ``resend_after`` seconds.

    Jobs of ``full_tenants`` could not be claimed now and are left out.
    """
    startable = (Job.state == "queued", is_backed_off(), Job.tenant_id.not_in(full_tenants))
    due: list[Due] = []
    for undelivered in (_is_unsent(), _is_unanswered(resend_after)):  # two queries: an OR would lose the index' order
        statement = select(Job.id, Job.queue, Job.dispatched_at).where(*startable, undelivered)
        due += session.execute(statement.order_by(Job.dispatched_at, Job.id).limit(limit - len(due)))
    return due


def count_queued(session: Session, queues: Set[str]) -> dict[str, int]:
    """Count the queued jobs of each of ``queues``; a queue without jobs is absent."""
    waiting = (Job.state == "queued", Job.queue.in_(queues))
    return dict(session.execute(select(Job.queue, func.count()).where(*waiting).group_by(Job.queue)).all())


def queue_positions(session: Session, jobs: Sequence[Job]) -> dict[str, int]:
    """Return, by job id, the job's position among its tenant's queued jobs in its queue; 1 is next.

    Jobs beyond :data:`QUEUE_HORIZON` are absent. Other tenants' jobs are not counted: their number is confidential, and
    the fair share makes it irrelevant.
    """
    positions: dict[str, int] = {}
    for tenant_id, queue in {(job.tenant_id, job.queue) for job in jobs if job.state == "queued"}:
        queued = (Job.state == "queued", Job.tenant_id == tenant_id, Job.queue == queue)
        first = select(Job.id, Job.created_at).where(*queued).order_by(Job.created_at, Job.id).limit(QUEUE_HORIZON)
        waiting = first.subquery()
        position = func.row_number().over(order_by=(waiting.c.created_at, waiting.c.id)).label("position")
        ranked = select(waiting.c.id, position).subquery()
        job_ids = [job.id for job in jobs]
        positions |= dict(session.execute(select(ranked).where(ranked.c.id.in_(job_ids))).all())
    return positions


def reserve(session: Session, job_ids: Sequence[str], resend_after: float) -> set[str]:
    """Mark those of ``job_ids`` that are still due as dispatched, before they are sent; return their ids.

    A concurrent relay skips them (SKIP LOCKED, then the mark). If this relay dies before sending, no worker claims them
    and they are due again after ``resend_after`` seconds.
    """
    undelivered = or_(_is_unsent(), _is_unanswered(resend_after))
    due = select(Job.id).where(Job.id.in_(job_ids), Job.state == "queued", undelivered)
    free = due.with_for_update(skip_locked=True)
    statement = update(Job).where(Job.id.in_(free)).values(dispatched_at=db_now()).returning(Job.id)
    return set(session.scalars(statement.execution_options(synchronize_session=False)))


def give_back(session: Session, job_ids: Sequence[str]) -> None:
    """Undo :func:`reserve` for jobs whose message was not sent."""
    statement = update(Job).where(Job.id.in_(job_ids), Job.state == "queued").values(dispatched_at=None)
    session.execute(statement.execution_options(synchronize_session=False))


def mark_dispatched(session: Session, job_ids: Sequence[str]) -> None:
    """Mark these jobs as dispatched now."""
    statement = update(Job).where(Job.id.in_(job_ids), Job.state == "queued").values(dispatched_at=db_now())
    session.execute(statement.execution_options(synchronize_session=False))


def _is_unsent() -> ColumnElement[bool]:
    return Job.dispatched_at.is_(None)


def _is_unanswered(resend_after: float) -> ColumnElement[bool]:
    return Job.dispatched_at < db_now() - resend_after


def _expire(session: Session, job: Job, guards: Guards) -> Job | None:
    if job.state == "cancelling":
        return transitions.move(session, "cancelled", Event("cancelled"), guards)
    if job.attempt < job.max_attempts:
        return transitions.put_back(session, Event("worker lost: lease expired, job requeued", "warn"), guards)
    error = WorkerLost(f"the worker was lost (its lease expired) in the last of {job.max_attempts} attempts")
    return transitions.fail(session, guards, ErrorObject.of(error, job.request_id))
