"""The job protocol: each function is one step of a job's life, inside the caller's transaction.

Every step is a single ``UPDATE ... WHERE <guards> RETURNING``: of any number of processes that try the same step, the
database lets one pass. Guards compare states, the fencing token and the database's clock, never this process's. The
same UPDATE numbers the job's events, so their sequence has no gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef
from armature.contracts.base import new_id
from armature.contracts.errors import ErrorObject
from armature.contracts.jobs import JOB_TRANSITIONS, EventLevel, EventType, JobState, Progress, check_transition
from armature.db.base import db_now
from armature.db.models import Artifact, ArtifactParent, BaseModel, Job, JobEvent
from armature.errors import Conflict, NotFound, WorkerLost

Pulse = Literal["running", "cancel_requested", "lost"]


@dataclass(frozen=True)
class Event:
    """A line for a job's log."""

    message: str
    level: EventLevel = "info"
    type: EventType = "message"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lease:
    """What a claim hands out: the right to change a job for as long as its fence stands."""

    job_id: str
    fence: int


@dataclass(frozen=True)
class Publication:
    """An artifact that lies complete in the store and waits for its row."""

    name: str
    ref: ArtifactRef
    manifest: ArtifactManifest


_SOURCES = {
    target: [state for state in get_args(JobState) if target in JOB_TRANSITIONS[state]] for target in get_args(JobState)
}
_QUEUED = {"lease_until": None, "worker": None, "dispatched_at": None, "phase": "queued", "step": 0, "total_steps": 0}
_RUNNING = {"started_at": func.coalesce(Job.started_at, db_now()), "fence": Job.fence + 1, "attempt": Job.attempt + 1}
_FINAL = {"lease_until": None, "checkpoint": None, "finished_at": db_now()}
_SUCCEEDED = {**_FINAL, "phase": "done", "step": 1, "total_steps": 1}
_ON_ENTRY: dict[JobState, dict[str, Any]] = {
    "queued": _QUEUED,
    "running": _RUNNING,
    "succeeded": _SUCCEEDED,
    "failed": _FINAL,
    "cancelled": _FINAL,
}
_NOT_CANCELLED = Job.cancel_requested_at.is_(None)
_CANCELLED = Job.cancel_requested_at.is_not(None)


def claim(session: Session, job_id: str, worker: str, lease_seconds: float) -> Job | None:
    """Take a queued job, with a fresh fence and one attempt more; None if it is not to be had.

    A job whose cancellation was requested, or whose back-off is not over, is not to be had.
    """
    return _move(
        session,
        "running",
        Event("started", data={"worker": worker}),
        [Job.id == job_id, _NOT_CANCELLED, _backed_off()],
        {"worker": worker, "lease_until": db_now() + lease_seconds},
    )


def heartbeat(
    session: Session,
    lease: Lease,
    lease_seconds: float,
    progress: Progress | None = None,
    events: Sequence[Event] = (),
) -> Pulse:
    """Renew the lease, store progress and events, and learn whether to go on."""
    values: dict[str, Any] = {"lease_until": db_now() + lease_seconds}
    if progress is not None:
        values |= {"phase": progress.phase, "step": progress.step, "total_steps": progress.total_steps}
    job = _write(session, _held(lease), values, events)
    if job is None:
        return "lost"
    return "running" if job.cancel_requested_at is None else "cancel_requested"


def save_checkpoint(session: Session, lease: Lease, checkpoint: dict[str, Any]) -> bool:
    """Point the job at its newest checkpoint; False if the lease is lost."""
    return _write(session, _held(lease), {"checkpoint": checkpoint}) is not None


def publish(session: Session, lease: Lease, outputs: Sequence[Publication], register_as: str | None = None) -> bool:
    """Succeed: the job's state, its artifacts and the base model it registers, in the caller's one transaction.

    False, with nothing changed, if the lease is lost or cancellation was requested.

    Raises:
        Conflict: The tenant has a base model of that name already; the caller must roll back.
    """
    base_model_id = new_id("base_model") if register_as else None
    guards = [*_held(lease), _NOT_CANCELLED]
    job = _move(session, "succeeded", Event("succeeded"), guards, {"base_model_id": base_model_id})
    if job is None:
        return False
    artifacts = {output.name: _artifact(job, output) for output in outputs}
    session.add_all(artifacts.values())
    session.flush()
    session.add_all(
        ArtifactParent(artifact_id=artifacts[output.name].id, role=parent.role, digest=parent.digest)
        for output in outputs
        for parent in output.manifest.parents
    )
    if register_as:
        artifact_id = artifacts["checkpoint"].id
        model = BaseModel(id=base_model_id, tenant_id=job.tenant_id, name=register_as, artifact_id=artifact_id)
        model.shared = job.shared
        _register(session, model)
    return True


def fail(session: Session, lease: Lease, error: ErrorObject) -> bool:
    """Fail for good; False if the lease is lost."""
    return _fail(session, _held(lease), error) is not None


def finish_cancelled(session: Session, lease: Lease) -> bool:
    """Acknowledge a requested cancellation; False if none was requested or the lease is lost."""
    return _move(session, "cancelled", Event("cancelled"), [*_held(lease), _CANCELLED]) is not None


def release(session: Session, lease: Lease, reason: str, *, delay: float = 0.0, refund: bool = False) -> bool:
    """Give the job back to the queue, at the earliest ``delay`` seconds from now; False if the lease is lost.

    A job whose cancellation was requested is cancelled instead. ``refund`` does not count the attempt: it ended for
    no fault of the job's, such as a worker's shutdown.
    """
    values = {"not_before": db_now() + delay, "attempt": Job.attempt - int(refund)}
    queued = _move(session, "queued", Event(reason, "warn"), [*_held(lease), _NOT_CANCELLED], values)
    return queued is not None or finish_cancelled(session, lease)  # requests are never withdrawn: one of both holds


def defer(session: Session, job_id: str, delay: float) -> bool:
    """Have a queued job sent again ``delay`` seconds from now: its message met a worker without room for it.

    It is not claimed, so no attempt is spent. False if it is not queued any more.
    """
    values = {"not_before": db_now() + delay, "dispatched_at": None}
    return _write(session, [Job.id == job_id, Job.state == "queued"], values) is not None


def request_cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a queued job now, and a running one as soon as its worker hears of it. Asking again changes nothing.

    Raises:
        NotFound: The tenant has no such job.
        InvalidTransition: The job has succeeded or failed.
    """
    mine = [Job.id == job_id, Job.tenant_id == tenant_id]
    active = [*mine, Job.state.in_(_SOURCES["cancelled"]), _NOT_CANCELLED]
    _write(session, active, {"cancel_requested_at": db_now()}, [Event("cancellation requested")])
    _move(session, "cancelled", Event("cancelled"), [*mine, Job.state == "queued"])
    job = session.scalars(select(Job).where(*mine).execution_options(populate_existing=True)).one_or_none()
    if job is None:
        raise NotFound(f"no job {job_id!r}", param="job_id")
    if job.cancel_requested_at is None:
        check_transition(job.state, "cancelled")
    return job


def expire_leases(session: Session, limit: int = 100) -> list[Job]:
    """Take jobs from workers that fell silent: cancelled if that was requested, queued again while attempts are
    left, else failed. Returns the jobs moved.
    """
    overdue = [Job.state == "running", Job.lease_until < db_now()]
    expired = session.scalars(select(Job).where(*overdue).limit(limit).with_for_update(skip_locked=True)).all()
    moved = [_expire(session, job, [*_held(Lease(job.id, job.fence)), *overdue]) for job in expired]
    return [job for job in moved if job is not None]


def due_for_dispatch(session: Session, resend_after: float, limit: int = 100) -> list[Job]:
    """Queued jobs that no message was sent for, or whose message nobody has answered for ``resend_after`` seconds."""
    silent = or_(Job.dispatched_at.is_(None), Job.dispatched_at < db_now() - resend_after)
    statement = select(Job).where(Job.state == "queued", _NOT_CANCELLED, _backed_off(), silent)
    return list(session.scalars(statement.order_by(Job.dispatched_at.nulls_first(), Job.id).limit(limit)))


def count_queued(session: Session) -> dict[str, int]:
    """Jobs waiting in each queue."""
    return dict(session.execute(select(Job.queue, func.count()).where(Job.state == "queued").group_by(Job.queue)).all())


def mark_dispatched(session: Session, job_ids: Sequence[str]) -> None:
    """Note that a message was sent for each of these jobs."""
    statement = update(Job).where(Job.id.in_(job_ids), Job.state == "queued").values(dispatched_at=db_now())
    session.execute(statement.execution_options(synchronize_session=False))


def append_event(
    session: Session,
    job_id: str,
    level: EventLevel,
    type: EventType,
    message: str,
    data: dict[str, Any] | None = None,
) -> None:
    """Add a line to a job's log."""
    _write(session, [Job.id == job_id], {}, [Event(message, level, type, data or {})])


def _held(lease: Lease) -> list[ColumnElement[bool]]:
    return [Job.id == lease.job_id, Job.fence == lease.fence, Job.state == "running"]


def _backed_off() -> ColumnElement[bool]:
    return or_(Job.not_before.is_(None), Job.not_before <= db_now())


def _move(
    session: Session,
    target: JobState,
    event: Event,
    guards: Sequence[ColumnElement[bool]],
    values: dict[str, Any] | None = None,
) -> Job | None:
    """The one way into a state: from the states that JOB_TRANSITIONS allows, if the guards hold."""
    allowed = Job.state.in_(_SOURCES[target])
    return _write(session, [allowed, *guards], {"state": target, **_ON_ENTRY[target], **(values or {})}, [event])


def _write(
    session: Session,
    guards: Sequence[ColumnElement[bool]],
    values: dict[str, Any],
    events: Sequence[Event] = (),
) -> Job | None:
    """Change the job that the guards select and number its new events; None if they select none."""
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


def _fail(session: Session, guards: Sequence[ColumnElement[bool]], error: ErrorObject) -> Job | None:
    event = Event(error.message, "error", data={"code": error.code})
    return _move(session, "failed", event, guards, {"error": error.model_dump(mode="json")})


def _expire(session: Session, job: Job, guards: Sequence[ColumnElement[bool]]) -> Job | None:
    if job.cancel_requested_at is not None:
        return _move(session, "cancelled", Event("cancelled"), guards)
    if job.attempt < job.max_attempts:
        return _move(session, "queued", Event("the worker fell silent; trying again", "warn"), guards)
    error = WorkerLost(f"the worker vanished in the last of {job.max_attempts} attempts")
    return _fail(session, guards, ErrorObject.of(error, job.request_id))


def _artifact(job: Job, output: Publication) -> Artifact:
    return Artifact(
        id=new_id("artifact"),
        tenant_id=job.tenant_id,
        job_id=job.id,
        name=output.name,
        kind=output.manifest.kind,
        digest=output.ref.digest,
        manifest_key=output.ref.manifest_key,
        manifest=output.manifest.model_dump(mode="json"),
        bytes=sum(file.size for file in output.manifest.files),
        shared=job.shared,
    )


def _register(session: Session, model: BaseModel) -> None:
    session.add(model)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"there is a base model named {model.name!r} already", param="spec.name") from error
