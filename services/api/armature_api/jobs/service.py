"""Jobs: accepting them, showing them, cancelling them. What happens in between is armature.db.jobs' business."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import Parent
from armature.contracts.base import digest
from armature.contracts.jobs import JobCreateRequest, JobEventView, JobView, Progress
from armature.contracts.specs import JobInput, JobSpec, parse_inputs
from armature.contracts.specs.base import ArtifactInput
from armature.contracts.specs.base_model import FolderSource, HubSource
from armature.db.jobs import append_event
from armature.db.models import Artifact, Job, JobEvent
from armature.errors import Conflict, IdempotencyKeyReused, InvalidIdempotencyKey
from armature.http.request_id import request_id
from armature_api.artifacts.service import artifact_view
from armature_api.callers import Caller
from armature_api.compatibility import (
    Combination,
    adapter_metadata,
    check_attributes,
    check_combination,
    check_new_attribute,
)
from armature_api.quotas import check_job_quota, take_turn
from armature_api.references import repeated_data, resolve
from armature_api.rows import insert


@dataclass(frozen=True)
class Accepted:
    """A job, and whether an earlier request had created it already."""

    job: Job
    replayed: bool


def create_job(
    session: Session, caller: Caller, request: JobCreateRequest, idempotency_key: str | None, max_attempts: int
) -> Accepted:
    """Check a spec, resolve its inputs and write the job; the row is its own outbox.

    Raises:
        PermissionDenied: ``shared``, or a source on the server's side, without the platform scope.
        IdempotencyKeyReused: The key came with another body before.
        RateLimited, QuotaExceeded: The tenant's limits do not allow it.
        NotFound, WrongKind, AdapterBaseMismatch, TokenizerMismatch: The spec's inputs do not fit.
    """
    body_digest = digest(request.model_dump(mode="json"))
    if (earlier := _earlier(session, caller, idempotency_key, body_digest)) is not None:
        return earlier
    if request.shared or isinstance(getattr(request.spec, "source", None), FolderSource | HubSource):
        caller.require("platform")
    take_turn(session, caller)
    check_job_quota(session, caller)
    references = request.spec.references()
    inputs = resolve(session, caller.tenant_id, references)
    _check_inputs(session, request.spec, inputs)
    job = Job(
        tenant_id=caller.tenant_id,
        kind=request.spec.kind,
        queue=request.spec.queue,
        spec=request.spec.model_dump(mode="json"),
        inputs={role: value.model_dump(mode="json") for role, value in inputs.items()},
        max_attempts=max_attempts,
        shared=request.shared,
        job_metadata=dict(request.metadata),
        idempotency_key=idempotency_key,
        request_digest=body_digest,
        request_id=request_id.get(),
    )
    lost_race = Conflict("another request with this Idempotency-Key is being served")
    try:
        insert(session, job, lost_race)
    except Conflict:
        if (winner := _earlier(session, caller, idempotency_key, body_digest)) is not None:
            return winner
        raise
    append_event(session, job.id, "info", "message", "queued")
    for complaint in repeated_data(references, inputs):
        append_event(session, job.id, "warn", "message", complaint)
    return Accepted(job, replayed=False)


def check_idempotency_key(key: str | None) -> str | None:
    """The header's value.

    Raises:
        InvalidIdempotencyKey: It is empty, too long, or not printable ASCII.
    """
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise InvalidIdempotencyKey(
            "Idempotency-Key takes 1 to 255 printable ASCII characters", param="Idempotency-Key"
        )
    return key


def _earlier(session: Session, caller: Caller, idempotency_key: str | None, body_digest: str) -> Accepted | None:
    if idempotency_key is None:
        return None
    mine = (Job.tenant_id == caller.tenant_id, Job.idempotency_key == idempotency_key)
    job = session.scalars(select(Job).where(*mine)).one_or_none()
    if job is None:
        return None
    if job.request_digest != body_digest:
        raise IdempotencyKeyReused("this Idempotency-Key came with another body before", param="Idempotency-Key")
    return Accepted(job, replayed=True)


def _check_inputs(session: Session, spec: JobSpec, inputs: Mapping[str, JobInput]) -> None:
    """Refuse now what the worker would refuse later, as far as digests tell."""
    artifacts = {
        role: session.get_one(Artifact, value.id) for role, value in inputs.items() if isinstance(value, ArtifactInput)
    }
    if "base_model" in artifacts:
        parts = Combination(
            base=artifacts["base_model"],
            harm_vector=artifacts.get("harm_vector"),
            harm_scale=getattr(spec, "harm_scale", 0.0),
            arm=artifacts.get("arm"),
            prefix="spec.",
        )
        check_combination(parts)
    if "arm" in artifacts:
        for param, attributes in spec.attributes_needed().items():
            check_attributes(adapter_metadata(artifacts["arm"]), attributes, param)
        for param, attribute in spec.attributes_added().items():
            check_new_attribute(adapter_metadata(artifacts["arm"]), attribute, param)


def events_after(session: Session, job_id: str, seq: int, limit: int) -> tuple[list[JobEventView], bool]:
    """The job's events that follow one, oldest first, and whether there are more."""
    statement = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq)
    found = session.scalars(statement.order_by(JobEvent.seq).limit(limit + 1)).all()
    return [_event_view(event) for event in found[:limit]], len(found) > limit


def job_views(session: Session, jobs: list[Job]) -> list[JobView]:
    """As the API shows them, each with the artifacts that it published."""
    artifacts: defaultdict[str, list[Artifact]] = defaultdict(list)
    published = select(Artifact).where(Artifact.job_id.in_({job.id for job in jobs})).order_by(Artifact.name)
    for artifact in session.scalars(published):
        artifacts[artifact.job_id].append(artifact)
    return [_job_view(job, artifacts[job.id]) for job in jobs]


def _job_view(job: Job, artifacts: list[Artifact]) -> JobView:
    return JobView.model_validate(
        {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "cancel_requested": job.cancel_requested_at is not None,
            "shared": job.shared,
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "progress": Progress(phase=job.phase, step=job.step, total_steps=job.total_steps),
            "created_at": int(job.created_at),
            "started_at": None if job.started_at is None else int(job.started_at),
            "finished_at": None if job.finished_at is None else int(job.finished_at),
            "error": job.error,
            "parents": [_parent(role, value) for role, value in parse_inputs(job.inputs).items()],
            "artifacts": [artifact_view(artifact, job.tenant_id) for artifact in artifacts],
            "base_model_id": job.base_model_id,
            "metadata": job.job_metadata,
            "spec": job.spec,
        }
    )


def _parent(role: str, value: JobInput) -> Parent:
    return Parent(role=role, digest=value.ref.digest if isinstance(value, ArtifactInput) else value.sha256)


def _event_view(event: JobEvent) -> JobEventView:
    return JobEventView.model_validate(
        {
            "seq": event.seq,
            "created_at": int(event.created_at),
            "level": event.level,
            "type": event.type,
            "message": event.message,
            "data": event.data,
        }
    )
