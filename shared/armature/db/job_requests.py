"""The owner's steps of the job protocol: cancel, pause, resume.

Each locks the job's row first, so that the state it returns is still true when the transaction commits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.jobs import TERMINAL_STATES, JobState, check_transition
from armature.contracts.specs import RESUMABLE_KINDS
from armature.db.models import Job
from armature.db.transitions import Event, move, write
from armature.errors import InvalidTransition, NotFound


def request_cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a waiting job at once, a running one at its worker's next heartbeat; idempotent.

    Raises:
        NotFound: The tenant has no such job.
        JobAlreadyFinished: The job has succeeded or failed.
    """
    job = _lock(session, tenant_id, job_id)
    if job.state in ("cancelling", "cancelled"):
        return job
    if job.state == "running":
        return _move(session, job, "cancelling", Event("cancellation requested"))
    return _move(session, job, "cancelled", Event("cancelled"))


def request_pause(session: Session, tenant_id: str, job_id: str) -> Job:
    """Pause a waiting job at once, a running one after its next checkpoint; idempotent.

    Raises:
        NotFound: The tenant has no such job.
        InvalidTransition: The job is over or being cancelled, or it runs and its kind saves no checkpoints.
    """
    job = _lock(session, tenant_id, job_id)
    if job.state == "paused" or job.pause_requested:
        return job
    if job.state != "running":
        return _move(session, job, "paused", Event("paused"))
    if job.kind not in RESUMABLE_KINDS:
        message = f"a running {job.kind} job saves no checkpoints: pausing it would discard its work"
        raise InvalidTransition(message, param="state")
    paused = write(session, [Job.id == job.id], {"pause_requested": True}, [Event("pause requested")])
    assert paused is not None
    return paused


def resume(session: Session, tenant_id: str, job_id: str) -> Job:
    """Requeue a paused job; it continues from its newest checkpoint.

    Raises:
        NotFound: The tenant has no such job.
        InvalidTransition: The job is not paused.
    """
    job = _lock(session, tenant_id, job_id)
    if job.state != "paused":
        if job.state in TERMINAL_STATES:
            check_transition(job.state, "queued")
        raise InvalidTransition(f"only a paused job can be resumed; this one is {job.state}", param="state")
    return _move(session, job, "queued", Event("resumed"), {"not_before": None})


def _lock(session: Session, tenant_id: str, job_id: str) -> Job:
    row = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    statement = row.with_for_update().execution_options(populate_existing=True)
    job = session.scalars(statement).one_or_none()
    if job is None:
        raise NotFound(f"no job {job_id!r}", param="job_id")
    return job


def _move(session: Session, job: Job, target: JobState, event: Event, values: dict[str, Any] | None = None) -> Job:
    check_transition(job.state, target)
    moved = move(session, target, event, [Job.id == job.id], values)
    assert moved is not None  # its row is locked
    return moved
