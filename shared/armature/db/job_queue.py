"""The relay's steps of the job protocol: what is to be sent, and whose worker fell silent."""

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
"""Places further back are not counted: what a request costs must not depend on how long the queue is."""


def expire_leases(session: Session, limit: int = 100) -> list[Job]:
    """Take jobs from workers that fell silent: cancelled or paused if that was requested, queued again while attempts
    are left, else failed. Returns the jobs moved.
    """
    overdue = [transitions.is_leased(), Job.lease_until < db_now()]
    expired = session.scalars(select(Job).where(*overdue).limit(limit).with_for_update(skip_locked=True)).all()
    moved = [_expire(session, job, [*Lease(job.id, job.fence).holds(), *overdue]) for job in expired]
    return [job for job in moved if job is not None]


Due = Row[tuple[str, str, float | None]]
"""Of a job that may have to be sent: ``id``, ``queue`` and, if it was sent before, ``dispatched_at``."""


def due_for_dispatch(
    session: Session, resend_after: float, limit: int = 100, full_tenants: Set[str] = frozenset()
) -> list[Due]:
    """Queued jobs that no message was sent for, or whose message nobody has answered for ``resend_after`` seconds.

    Jobs of ``full_tenants``, which can not start now, are passed over.
    """
    startable = (Job.state == "queued", is_backed_off(), Job.tenant_id.not_in(full_tenants))
    due: list[Due] = []
    for silent in (_is_unsent(), _is_unanswered(resend_after)):  # one after the other, each in its index' order
        statement = select(Job.id, Job.queue, Job.dispatched_at).where(*startable, silent)
        due += session.execute(statement.order_by(Job.dispatched_at, Job.id).limit(limit - len(due)))
    return due


def count_queued(session: Session, queues: Set[str]) -> dict[str, int]:
    """Jobs waiting in each of the queues."""
    waiting = (Job.state == "queued", Job.queue.in_(queues))
    return dict(session.execute(select(Job.queue, func.count()).where(*waiting).group_by(Job.queue)).all())


def queue_positions(session: Session, jobs: Sequence[Job]) -> dict[str, int]:
    """Places of those of the jobs that stand among their tenant's first :data:`QUEUE_HORIZON` in a queue; 1 is next.

    Other tenants' jobs are not counted: their number is nobody's business, and tenants take turns.
    """
    positions: dict[str, int] = {}
    for tenant_id, queue in {(job.tenant_id, job.queue) for job in jobs if job.state == "queued"}:
        mine = (Job.state == "queued", Job.tenant_id == tenant_id, Job.queue == queue)
        first = select(Job.id, Job.created_at).where(*mine).order_by(Job.created_at, Job.id).limit(QUEUE_HORIZON)
        waiting = first.subquery()
        place = func.row_number().over(order_by=(waiting.c.created_at, waiting.c.id)).label("place")
        ranked = select(waiting.c.id, place).subquery()
        asked = [job.id for job in jobs]
        positions |= dict(session.execute(select(ranked).where(ranked.c.id.in_(asked))).all())
    return positions


def reserve(session: Session, job_ids: Sequence[str], resend_after: float) -> set[str]:
    """Note that messages are being sent for those of the jobs that are still due; their ids.

    A relay that tries the same at the same time passes over them. One that dies before it sends leaves jobs whose
    message nobody answers, which are due again after ``resend_after`` seconds.
    """
    silent = or_(_is_unsent(), _is_unanswered(resend_after))
    due = select(Job.id).where(Job.id.in_(job_ids), Job.state == "queued", silent)
    free = due.with_for_update(skip_locked=True)
    statement = update(Job).where(Job.id.in_(free)).values(dispatched_at=db_now()).returning(Job.id)
    return set(session.scalars(statement.execution_options(synchronize_session=False)))


def give_back(session: Session, job_ids: Sequence[str]) -> None:
    """Note that no message was sent for these reserved jobs after all."""
    statement = update(Job).where(Job.id.in_(job_ids), Job.state == "queued").values(dispatched_at=None)
    session.execute(statement.execution_options(synchronize_session=False))


def mark_dispatched(session: Session, job_ids: Sequence[str]) -> None:
    """Note that a message was sent for each of these jobs."""
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
        return transitions.put_back(session, Event("the worker fell silent; trying again", "warn"), guards)
    error = WorkerLost(f"the worker vanished in the last of {job.max_attempts} attempts")
    return transitions.fail(session, guards, ErrorObject.of(error, job.request_id))
