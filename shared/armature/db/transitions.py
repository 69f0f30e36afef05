"""The only way to change a job's state, a compare-and-set: ``UPDATE ... WHERE <guards> RETURNING``.

Of any number of processes that try the same step, exactly one succeeds. Guards compare states, the fencing token and
the database's clock, never this process's. The same UPDATE numbers the job's events, so their sequence has no gaps, and
it names the states that :data:`JOB_TRANSITIONS` allows as a start, so a final state is never left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.orm import Session

from armature.contracts.errors import ErrorObject
from armature.contracts.jobs import ACTIVE_STATES, JOB_TRANSITIONS, EventLevel, EventType, JobState
from armature.db.base import db_now
from armature.db.models import LEASED_STATES, Job, JobEvent

Guards = Sequence[ColumnElement[bool]]


@dataclass(frozen=True)
class Event:
    """A line of a job's log, not yet numbered."""

    message: str
    level: EventLevel = "info"
    type: EventType = "message"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lease:
    """The right to change a job, held as long as ``fence`` is the job's current fencing token."""

    job_id: str
    fence: int

    def holds(self) -> list[ColumnElement[bool]]:
        """Return the guards under which the lease is still valid."""
        return [Job.id == self.job_id, Job.fence == self.fence, is_leased()]


_SOURCES = {
    target: [state for state in get_args(JobState) if target in JOB_TRANSITIONS[state]] for target in get_args(JobState)
}
_IDLE = {"lease_until": None, "eta_seconds": None, "pause_requested": False}
_WAITING = {**_IDLE, "worker": None, "dispatched_at": None, "step": 0, "total_steps": 0}
_FINAL = {**_IDLE, "finished_at": db_now()}
_ON_ENTRY: dict[JobState, dict[str, Any]] = {
    "queued": {**_WAITING, "phase": "queued"},
    "running": {
        "started_at": func.coalesce(Job.started_at, db_now()),
        "fence": Job.fence + 1,
        "attempt": Job.attempt + 1,
    },
    "paused": {**_WAITING, "phase": "paused"},
    "cancelling": {"pause_requested": False},
    "succeeded": {**_FINAL, "phase": "done", "step": 1, "total_steps": 1, "percent": 100.0, "checkpoint": None},
    "failed": _FINAL,
    "cancelled": _FINAL,
}


def is_leased() -> ColumnElement[bool]:
    """Return the condition that a worker holds the job."""
    return Job.state.in_(LEASED_STATES)


def is_active() -> ColumnElement[bool]:
    """Return the condition that the job is not in a final state."""
    return Job.state.in_(ACTIVE_STATES)


def move(
    session: Session, target: JobState, event: Event, guards: Guards, values: dict[str, Any] | None = None
) -> Job | None:
    """Move the job that ``guards`` select to ``target``; None, with nothing changed, if they select none."""
    allowed = Job.state.in_(_SOURCES[target])
    return write(session, [allowed, *guards], {"state": target, **_ON_ENTRY[target], **(values or {})}, [event])


def fail(session: Session, guards: Guards, error: ErrorObject) -> Job | None:
    """Move the job that ``guards`` select to ``failed`` and store ``error``; None if they select none."""
    event = Event(error.message, "error", data={"code": error.code})
    return move(session, "failed", event, guards, {"error": error.model_dump(mode="json")})


def put_back(session: Session, event: Event, guards: Guards, values: dict[str, Any] | None = None) -> Job | None:
    """Requeue a running job, or pause it if a pause is requested; None if ``guards`` select none."""
    queued = move(session, "queued", event, [*guards, Job.pause_requested.is_(False)], values)
    return queued or move(session, "paused", event, [*guards, Job.pause_requested.is_(True)], values)


def write(session: Session, guards: Guards, values: dict[str, Any], events: Sequence[Event] = ()) -> Job | None:
    """Update the job that ``guards`` select and append ``events``, numbered; None if they select none."""
    statement = (
        update(Job)
        .where(*guards)
        .values(last_event_seq=Job.last_event_seq + len(events), **values)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    job = session.scalars(statement).one_or_none()
    if job is not None:
        first = job.last_event_seq - len(events) + 1
        session.add_all(
            JobEvent(
                job_id=job.id,
                seq=first + offset,
                level=event.level,
                type=event.type,
                message=event.message,
                data={"attempt": job.attempt, **event.data},
            )
            for offset, event in enumerate(events)
        )
    return job
