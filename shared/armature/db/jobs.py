"""A worker's steps of the job protocol, each inside the caller's transaction and guarded by the lease.

:mod:`armature.db.job_requests` has the owner's steps and :mod:`armature.db.job_queue` the relay's; every step is the
guarded UPDATE of :mod:`armature.db.transitions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, case, or_, select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef, BlobRef
from armature.contracts.base import new_id
from armature.contracts.errors import ErrorObject
from armature.contracts.file_scans import FileScan
from armature.contracts.jobs import WaitingFor
from armature.db.base import db_now
from armature.db.base_models import register
from armature.db.models import Artifact, ArtifactParent, BaseModel, Dataset, File, Job, JobEvent
from armature.db.transitions import Event, Lease, move, put_back, write
from armature.db.transitions import fail as move_to_failed

WAITING_FOR = "waiting_for"
"""Key of an event's data: what a queued job lacks."""
Pulse = Literal["running", "pause_requested", "cancelling", "lost"]


@dataclass(frozen=True)
class Position:
    """Where an attempt is: ``step`` of ``total_steps`` in a phase, ``percent`` of the whole job."""

    phase: str
    step: int = 0
    total_steps: int = 0
    percent: float = 0.0
    eta_seconds: float | None = None


@dataclass(frozen=True)
class Publication:
    """An artifact whose objects are all in the store and whose row is not inserted yet."""

    name: str
    ref: ArtifactRef
    manifest: ArtifactManifest


@dataclass(frozen=True)
class DatasetPublication:
    """A file of rows whose bytes are in the store, to be inserted as a data set."""

    name: str
    file: BlobRef
    scan: FileScan


def claim(session: Session, job_id: str, worker: str, lease_seconds: float) -> Job | None:
    """Claim a queued job: new fencing token, attempt + 1. None if already claimed or still backing off."""
    return move(
        session,
        "running",
        Event("started", data={"worker": worker}),
        [Job.id == job_id, is_backed_off()],
        {"worker": worker, "lease_until": db_now() + lease_seconds},
    )


def heartbeat(
    session: Session,
    lease: Lease,
    lease_seconds: float,
    position: Position | None = None,
    events: Sequence[Event] = (),
) -> Pulse:
    """Renew the lease, store ``position`` and ``events``, and return what the attempt must do next."""
    values: dict[str, Any] = {"lease_until": db_now() + lease_seconds}
    if position is not None:
        values |= {
            "phase": position.phase,
            "step": position.step,
            "total_steps": position.total_steps,
            "percent": case((Job.percent < position.percent, position.percent), else_=Job.percent),
            "eta_seconds": position.eta_seconds,
            "progress_at": db_now(),
        }
    job = write(session, lease.holds(), values, events)
    if job is None:
        return "lost"
    if job.state == "cancelling":
        return "cancelling"
    return "pause_requested" if job.pause_requested else "running"


def save_checkpoint(session: Session, lease: Lease, checkpoint: dict[str, Any]) -> bool:
    """Store the newest checkpoint in the job's row; False if the lease is lost."""
    return write(session, lease.holds(), {"checkpoint": checkpoint}) is not None


def publish(
    session: Session,
    lease: Lease,
    outputs: Sequence[Publication],
    register_as: str | None = None,
    datasets: Sequence[DatasetPublication] = (),
) -> bool:
    """Mark the job succeeded and insert its artifacts, its data sets and the base model ``register_as``.

    All in the caller's transaction. False, with nothing changed, if the lease is lost or the job is being cancelled.

    Raises:
        NameTaken: The tenant already has a base model or an alias of that name; the caller must roll back.
    """
    base_model_id = new_id("base_model") if register_as else None
    job = move(session, "succeeded", Event("succeeded"), lease.holds(), {"base_model_id": base_model_id})
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
    for made in datasets:
        _insert_dataset(session, job, made)
    if register_as:
        artifact_id = artifacts["checkpoint"].id
        model = BaseModel(id=base_model_id, tenant_id=job.tenant_id, name=register_as, artifact_id=artifact_id)
        model.shared = job.shared
        register(session, model, "spec.name")
    return True


def fail(session: Session, lease: Lease, error: ErrorObject) -> bool:
    """Mark the job failed for good; False if the lease is lost or the job is being cancelled."""
    return move_to_failed(session, lease.holds(), error) is not None


def finish_cancelled(session: Session, lease: Lease) -> bool:
    """Acknowledge a requested cancellation; False if none was requested or the lease is lost."""
    return move(session, "cancelled", Event("cancelled"), lease.holds()) is not None


def finish_paused(session: Session, lease: Lease) -> bool:
    """Acknowledge a requested pause, refund the attempt; False if none was requested or the lease is lost."""
    guards = [*lease.holds(), Job.pause_requested.is_(True)]
    return move(session, "paused", Event("paused"), guards, {"attempt": Job.attempt - 1}) is not None


def release(session: Session, lease: Lease, reason: str, *, delay: float = 0.0, refund: bool = False) -> bool:
    """Requeue the job with a back-off of ``delay`` seconds; False if lease or attempts are used up.

    A requested pause or cancellation is carried out instead. ``refund`` restores the attempt, for an end that the job
    did not cause, such as a worker's shutdown.
    """
    values = {"not_before": db_now() + delay, "attempt": Job.attempt - int(refund)}
    guards = lease.holds() if refund else [*lease.holds(), Job.attempt < Job.max_attempts]
    waits = put_back(session, Event(reason, "warn"), guards, values)
    return waits is not None or finish_cancelled(session, lease)  # a requested cancellation is never withdrawn


def defer(session: Session, job_id: str, delay: float, waiting_for: WaitingFor) -> bool:
    """Dispatch a queued job again in ``delay`` seconds; False if it is no longer queued.

    For a worker that got the job's message and has no room: nothing was claimed, so no attempt is spent. The job's log
    says what it waits for, once for as long as that stays the same.
    """
    values = {"not_before": db_now() + delay, "dispatched_at": None}
    data = {WAITING_FOR: waiting_for.model_dump(mode="json")}
    known = waits_of(session, [job_id]).get(job_id)
    is_known = known is not None and (known.reason, known.needs_bytes) == (waiting_for.reason, waiting_for.needs_bytes)
    events = [] if is_known else [Event(waiting_for.message(), "warn", data=data)]
    return write(session, [Job.id == job_id, Job.state == "queued"], values, events) is not None


def waits_of(session: Session, job_ids: Sequence[str]) -> dict[str, WaitingFor]:
    """Read what queued jobs wait for, by id: those whose newest event says so."""
    newest = (
        select(JobEvent)
        .join(Job, and_(Job.id == JobEvent.job_id, Job.last_event_seq == JobEvent.seq))
        .where(Job.id.in_(job_ids), Job.state == "queued")
    )
    found = {event.job_id: event.data.get(WAITING_FOR) for event in session.scalars(newest)}
    return {id: WaitingFor.model_validate(wait) for id, wait in found.items() if wait}


def append_event(session: Session, job_id: str, event: Event) -> None:
    """Append ``event`` to a job's log."""
    write(session, [Job.id == job_id], {}, [event])


def is_backed_off() -> ColumnElement[bool]:
    """Return the condition that a job's back-off is over."""
    return or_(Job.not_before.is_(None), Job.not_before <= db_now())


def _insert_dataset(session: Session, job: Job, made: DatasetPublication) -> None:
    """Insert the file and the data set made of it; its bytes are the blob of an artifact's file."""
    scan = made.scan
    assert scan.format is not None
    file = File(
        tenant_id=job.tenant_id,
        filename=f"{made.name}.jsonl",
        purpose="dataset",
        sha256=made.file.sha256,
        bytes=made.file.size,
        scan=scan.model_dump(mode="json"),
    )
    session.add(file)
    session.flush()
    session.add(
        Dataset(
            tenant_id=job.tenant_id,
            name=made.name,
            format=scan.format,
            file_id=file.id,
            job_id=job.id,
            rows=scan.statistics.rows,
        )
    )


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
