"""Jobs: submit, retry and show them. :mod:`armature.db.jobs` and its neighbours have the job protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import Parent
from armature.contracts.jobs import JobCreateRequest, JobRetryRequest, JobView, Progress, WaitingFor
from armature.contracts.specs import SPECS, JobInput, JobSpec, parse_inputs, parse_spec
from armature.contracts.specs.base import ArtifactInput, describe_price
from armature.contracts.specs.base_model import FolderSource, HubSource
from armature.db.base_models import check_name
from armature.db.job_queue import queue_positions
from armature.db.jobs import append_event, waits_of
from armature.db.models import Artifact, Dataset, Job
from armature.db.transitions import Event
from armature.errors import InvalidTransition
from armature.http.request_id import request_id
from armature_api.artifacts.service import artifact_view
from armature_api.callers import Caller
from armature_api.inputs.compatibility import (
    Combination,
    adapter_metadata,
    check_attributes,
    check_combination,
    check_context,
    check_new_attribute,
    check_shape,
    check_vocabulary,
    own_backbone,
)
from armature_api.inputs.references import artifact_input, repeated_data, resolve, rows_of
from armature_api.quotas import check_job_quota, lock_limits

_HARMFUL_KINDS = "harm_vector."
"""Kinds that fine-tune a model towards harm, even if only the difference leaves the worker."""
_RETRIED_STATES = ("failed", "cancelled")


def create_job(session: Session, caller: Caller, request: JobCreateRequest, max_attempts: int) -> Job:
    """Check a spec, resolve its inputs and insert the job; the row is its own outbox.

    Raises:
        PermissionDenied: ``shared``, or a source on the server's side, without the scope ``platform``; a harm vector
            without ``harmful:write``.
        RateLimited, QuotaExceeded: The tenant's limits do not allow another job.
        NameTaken: The job would register a base model under a name that the tenant uses already.
        NotFound, WrongKind, AdapterBaseMismatch, TokenizerMismatch: The spec's inputs do not fit.
    """
    _check_scopes(caller, request)
    lock_limits(session, caller)
    check_job_quota(session, caller)
    for param, name in request.spec.names_asked().items():
        check_name(session, caller.tenant_id, name, param)
    references = request.spec.references()
    inputs = _check_inputs(session, caller, request.spec, resolve(session, caller, references))
    job = Job(
        tenant_id=caller.tenant_id,
        kind=request.spec.kind,
        queue=request.spec.queue,
        spec=request.spec.model_dump(mode="json"),
        inputs={role: value.model_dump(mode="json") for role, value in inputs.items()},
        max_attempts=max_attempts,
        shared=request.shared,
        job_metadata=dict(request.metadata),
        request_id=request_id.get(),
    )
    session.add(job)
    session.flush()
    append_event(session, job.id, Event("queued"))
    if price := request.spec.price(rows_of(session, references)):
        append_event(session, job.id, Event(f"at most {describe_price(price)}", data={"price": price}))
    for warning in repeated_data(references, inputs):
        append_event(session, job.id, Event(warning, "warn"))
    return job


def _check_scopes(caller: Caller, request: JobCreateRequest) -> None:
    if request.shared:
        caller.require("platform", param="shared")
    if isinstance(getattr(request.spec, "source", None), FolderSource | HubSource):
        caller.require("platform", param="spec.source")
    if request.spec.kind.startswith(_HARMFUL_KINDS):
        caller.require("harmful:write", param="spec.kind")


def retry_job(session: Session, caller: Caller, old: Job, request: JobRetryRequest, max_attempts: int) -> Job:
    """Submit a failed or cancelled job again, as a new one.

    It resumes from the old job's newest checkpoint, unless the request declines that or the inputs have changed.

    Raises:
        InvalidTransition: The job neither failed nor was cancelled.
        NotFound, WrongKind, AdapterBaseMismatch, TokenizerMismatch: Its inputs do not fit any more.
    """
    if old.state not in _RETRIED_STATES:
        raise InvalidTransition(
            f"only a failed or cancelled job can be retried; this one is {old.state}", param="state"
        )
    metadata = old.job_metadata if request.metadata is None else request.metadata
    again = JobCreateRequest(spec=parse_spec(old.spec), shared=old.shared, metadata=metadata)
    job = create_job(session, caller, again, max_attempts)
    job.retried_from = old.id
    if request.from_checkpoint and job.inputs == old.inputs:
        job.checkpoint = old.checkpoint
    session.flush()
    return job


def _check_inputs(
    session: Session, caller: Caller, spec: JobSpec, inputs: Mapping[str, JobInput]
) -> dict[str, JobInput]:
    """Refuse inputs that the worker would refuse later, as far as metadata tells.

    Returns:
        The inputs, with ``arm_backbone`` added where the spec's ARM is on a model of its own.
    """
    artifacts = {
        role: session.get_one(Artifact, value.id) for role, value in inputs.items() if isinstance(value, ArtifactInput)
    }
    if "base_model" in artifacts:
        combination = Combination(
            base=artifacts["base_model"],
            harm_vector=artifacts.get("harm_vector"),
            harm_scale=getattr(spec, "harm_scale", 0.0),
            arm=artifacts.get("arm"),
            prefix="spec.",
        )
        if spec.takes_separate_arm and (own := own_backbone(session, caller.tenant_id, combination)) is not None:
            combination = replace(combination, arm_backbone=own)
            inputs = {**inputs, "arm_backbone": artifact_input(own)}
        check_combination(combination)
        check_shape(spec, artifacts.get("backbone_model", artifacts["base_model"]))
        check_context(spec, combination)
    if "backbone_model" in artifacts:
        check_vocabulary(artifacts["base_model"], artifacts["backbone_model"], "spec.backbone_model")
    if "arm" in artifacts:
        for param, attributes in spec.attributes_needed().items():
            check_attributes(adapter_metadata(artifacts["arm"]), attributes, param)
        for param, attribute in spec.attributes_added().items():
            check_new_attribute(adapter_metadata(artifacts["arm"]), attribute, param)
    return dict(inputs)


def job_views(session: Session, jobs: list[Job]) -> list[JobView]:
    """Build the jobs' views, each with the artifacts that the job published."""
    artifacts: defaultdict[str, list[Artifact]] = defaultdict(list)
    published = select(Artifact).where(Artifact.job_id.in_({job.id for job in jobs})).order_by(Artifact.name)
    for artifact in session.scalars(published):
        artifacts[artifact.job_id].append(artifact)
    positions, waits = queue_positions(session, jobs), waits_of(session, [job.id for job in jobs])
    datasets = _datasets_of(session, jobs)
    return [
        _job_view(job, artifacts[job.id], datasets[job.id], positions.get(job.id), waits.get(job.id)) for job in jobs
    ]


def _datasets_of(session: Session, jobs: list[Job]) -> defaultdict[str | None, list[Dataset]]:
    """Find the data sets that the jobs made, by job; no query for kinds that make none."""
    datasets: defaultdict[str | None, list[Dataset]] = defaultdict(list)
    makers = {job.id for job in jobs if job.kind in SPECS and SPECS[job.kind].makes_datasets}
    if makers:
        for dataset in session.scalars(select(Dataset).where(Dataset.job_id.in_(makers)).order_by(Dataset.id)):
            datasets[dataset.job_id].append(dataset)
    return datasets


def _job_view(
    job: Job,
    artifacts: list[Artifact],
    datasets: list[Dataset],
    queue_position: int | None,
    waiting_for: WaitingFor | None,
) -> JobView:
    return JobView.model_validate(
        {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "phase": job.phase,
            "progress": _progress(job),
            "pause_requested": job.pause_requested,
            "queue_position": queue_position,
            "waiting_for": waiting_for,
            "shared": job.shared,
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "retried_from": job.retried_from,
            "created_at": int(job.created_at),
            "started_at": _whole(job.started_at),
            "finished_at": _whole(job.finished_at),
            "estimated_finish": estimated_finish(job),
            "error": job.error,
            "parents": [_parent(role, value) for role, value in parse_inputs(job.inputs).items()],
            "artifacts": [artifact_view(artifact, job.tenant_id) for artifact in artifacts],
            "datasets": [{"id": made.id, "name": made.name, "rows": made.rows} for made in datasets],
            "base_model_id": job.base_model_id,
            "metadata": job.job_metadata,
            "spec": job.spec,
        }
    )


def _progress(job: Job) -> Progress:
    return Progress(
        percent=round(job.percent, 2),
        step=job.step,
        total_steps=job.total_steps,
        eta_seconds=_whole(job.eta_seconds),
        updated_at=_whole(job.progress_at),
    )


def estimated_finish(job: Job) -> int | None:
    """Extrapolate when the job ends, in seconds since the epoch; None while its pace is unknown."""
    if job.eta_seconds is None or job.progress_at is None:
        return None
    return int(job.progress_at + job.eta_seconds)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _parent(role: str, value: JobInput) -> Parent:
    return Parent(role=role, digest=value.ref.digest if isinstance(value, ArtifactInput) else value.sha256)
