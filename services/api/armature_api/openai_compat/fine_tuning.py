"""Routes of ``/v1/fine_tuning/jobs``: ``arm.train`` jobs in the shapes of OpenAI's clients.

``n_epochs`` passes over the training file at ``batch_size`` give the steps; ``learning_rate_multiplier`` scales the
default rate; ``"auto"`` and an absent value keep the defaults. Other fields of a spec go into ``method``:
``{"type": "arm", "arm": {"harm_vector": "art_...", "attributes": [...]}}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.base import Contract, Seed
from armature.contracts.file_scans import FileScan
from armature.contracts.jobs import JobCreateRequest, Metadata
from armature.contracts.pages import Page
from armature.contracts.specs.arm import ArmTraining, ArmTrainSpec
from armature.contracts.specs.size_defaults import SizeDefaults, size_defaults
from armature.db.job_requests import request_cancel, request_pause, resume
from armature.db.models import Job, JobEvent
from armature.errors import ArmatureError, InvalidCursor, NotFound
from armature.http.errors import validation_error
from armature_api.deps import CallerDep, ReaderDep, SessionDep, scoped_router
from armature_api.files.service import scan_of
from armature_api.inputs.references import find_checkpoint, find_rows_file
from armature_api.jobs import service
from armature_api.jobs.dispatch import SubmissionDep
from armature_api.jobs.events import checkpoints_of
from armature_api.jobs.filters import FiltersDep
from armature_api.kit.idempotency import NOTHING, OnceDep
from armature_api.kit.queries import PageDep, find, newest_first, visible_parts
from armature_api.openai_compat.fine_tuning_views import (
    FineTuningCheckpointView,
    FineTuningEventView,
    FineTuningJobView,
    event_view,
    job_view,
    job_views,
)

KIND = "arm.train"
_DEFAULTS = ArmTraining()
_SENT_AS = {
    "spec.base_model": "model",
    "spec.pairs": "training_file",
    "spec.validation_pairs": "validation_file",
}
"""Fields of the spec, and the client's names for them."""

router = scoped_router("fine_tuning", "jobs")


class Hyperparameters(Contract):
    """OpenAI's hyperparameters."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(ge=1e-6, le=300)] = "auto"


class ArmMethod(Contract):
    """The only method; ``arm`` holds fields of an ``arm.train`` spec."""

    type: Literal["arm"]
    arm: dict[str, Any] = Field(default_factory=dict)


class FineTuningRequest(Contract):
    """The body that ``client.fine_tuning.jobs.create`` sends."""

    model: str = Field(description="a base model's id or alias")
    training_file: str = Field(description="a file of rows, or a data set")
    validation_file: str | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    method: ArmMethod = ArmMethod(type="arm")
    seed: Seed = 0
    suffix: str | None = Field(None, max_length=64, description="kept in the metadata")
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None


@router.post("/fine_tuning/jobs")
def create_fine_tuning_job(
    request: FineTuningRequest, caller: CallerDep, session: SessionDep, submission: SubmissionDep, once: OnceDep
) -> FineTuningJobView:
    """Submit an ``arm.train`` job."""

    def create() -> FineTuningJobView:
        asked = _job_request(session, caller.tenant_id, request)
        with _in_the_clients_words():
            job = service.create_job(session, caller, asked, submission.max_attempts)
        submission.accept(session, job)
        return job_view(session, job)

    return once.answer(session, FineTuningJobView, request, create)


@router.get("/fine_tuning/jobs")
def list_fine_tuning_jobs(
    caller: CallerDep, session: ReaderDep, page: PageDep, filters: FiltersDep
) -> Page[FineTuningJobView]:
    """List the tenant's ``arm.train`` jobs."""
    parts = visible_parts(Job, caller.tenant_id)
    rows, has_more = newest_first(session, Job, parts, page, [*filters, Job.kind == KIND])
    return Page.of(job_views(session, rows), has_more)


@router.get("/fine_tuning/jobs/{job_id}")
def get_fine_tuning_job(job_id: str, caller: CallerDep, session: ReaderDep) -> FineTuningJobView:
    """Show a job."""
    return job_view(session, _find(session, caller.tenant_id, job_id))


@router.post("/fine_tuning/jobs/{job_id}/cancel")
def cancel_fine_tuning_job(job_id: str, caller: CallerDep, session: SessionDep) -> FineTuningJobView:
    """Cancel the job."""
    _find(session, caller.tenant_id, job_id)
    return job_view(session, request_cancel(session, caller.tenant_id, job_id))


@router.post("/fine_tuning/jobs/{job_id}/pause")
def pause_fine_tuning_job(job_id: str, caller: CallerDep, session: SessionDep) -> FineTuningJobView:
    """Pause the job."""
    _find(session, caller.tenant_id, job_id)
    return job_view(session, request_pause(session, caller.tenant_id, job_id))


@router.post("/fine_tuning/jobs/{job_id}/resume")
def resume_fine_tuning_job(
    job_id: str, caller: CallerDep, session: SessionDep, submission: SubmissionDep, once: OnceDep
) -> FineTuningJobView:
    """Resume the job."""

    def resume_once() -> FineTuningJobView:
        _find(session, caller.tenant_id, job_id)
        job = resume(session, caller.tenant_id, job_id)
        submission.accept(session, job)
        return job_view(session, job)

    return once.answer(session, FineTuningJobView, NOTHING, resume_once)


@router.get("/fine_tuning/jobs/{job_id}/events")
def list_fine_tuning_events(
    job_id: str,
    caller: CallerDep,
    session: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="id of the last event seen")] = None,
) -> Page[FineTuningEventView]:
    """List the job's log, newest first as OpenAI does."""
    job = _find(session, caller.tenant_id, job_id)
    statement = select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.seq.desc()).limit(limit + 1)
    if after is not None:
        seq = after.removeprefix(f"{job.id}-")
        if not (seq.isdecimal() and seq.isascii() and 0 < int(seq[:10]) <= job.last_event_seq):
            raise InvalidCursor("'after' names no event of this job", param="after")
        statement = statement.where(JobEvent.seq < int(seq))
    found = session.scalars(statement).all()
    return Page.of([event_view(event) for event in found[:limit]], len(found) > limit)


@router.get("/fine_tuning/jobs/{job_id}/checkpoints")
def list_fine_tuning_checkpoints(job_id: str, caller: CallerDep, session: ReaderDep) -> Page[FineTuningCheckpointView]:
    """List the job's newest checkpoint, while it is kept."""
    views = [
        FineTuningCheckpointView(
            id=checkpoint.id,
            created_at=checkpoint.created_at,
            fine_tuned_model_checkpoint=checkpoint.id,
            fine_tuning_job_id=checkpoint.job_id,
            metrics={"step": float(checkpoint.step_number)},
            step_number=checkpoint.step_number,
        )
        for checkpoint in checkpoints_of(_find(session, caller.tenant_id, job_id))
    ]
    return Page.of(views, False)


@contextmanager
def _in_the_clients_words() -> Iterator[None]:
    """Name in errors the field that the client sent, not the one it became in the spec."""
    try:
        yield
    except ArmatureError as error:
        for field, sent in _SENT_AS.items():
            error.message = error.message.replace(field, sent)
            error.param = sent if error.param == field else error.param
        raise


def _find(session: Session, tenant_id: str, job_id: str) -> Job:
    job = find(session, Job, tenant_id, job_id)
    if job.kind != KIND:
        raise NotFound("there is no such job")
    return job


def _job_request(session: Session, tenant_id: str, request: FineTuningRequest) -> JobCreateRequest:
    """Translate the request into a job submission."""
    spec: dict[str, Any] = {"kind": KIND, "seed": request.seed, **request.method.arm}
    spec |= {"base_model": request.model, "pairs": request.training_file, "validation_pairs": request.validation_file}
    scan = _scan(session, tenant_id, request.training_file)
    if scan is not None and "attributes" not in spec:
        labelled = [name for name, about in scan.statistics.attributes.items() if about.labels]
        spec |= {"attributes": labelled} if labelled else {}
    given = spec.get("training", {})
    trained = spec.get("backbone_model") or request.model
    defaults = _training(request.hyperparameters, scan, arm_defaults(session, tenant_id, trained))
    spec["training"] = {**defaults, **given} if isinstance(given, dict) else given
    metadata = dict(request.metadata or {}) | ({"suffix": request.suffix} if request.suffix else {})
    try:
        return JobCreateRequest(spec=ArmTrainSpec.model_validate(spec), metadata=metadata)
    except ValidationError as error:
        raise validation_error([{**one, "loc": ("", "method", "arm", *one["loc"])} for one in error.errors()]) from None


def arm_defaults(session: Session, tenant_id: str, base_model: str) -> SizeDefaults:
    """Return the defaults for a base model's size, or for the smallest if there is no such model."""
    try:
        checkpoint = find_checkpoint(session, tenant_id, base_model, param="model")
    except NotFound:
        return size_defaults("arm", 0)
    return size_defaults("arm", checkpoint.manifest["metadata"]["parameters"])


def _training(asked: Hyperparameters, scan: FileScan | None, defaults: SizeDefaults) -> dict[str, Any]:
    training: dict[str, Any] = {}
    if asked.batch_size != "auto":
        training["batch_size"] = asked.batch_size
    if asked.learning_rate_multiplier != "auto":
        training["learning_rate"] = min(1.0, defaults.learning_rate * asked.learning_rate_multiplier)
    if asked.n_epochs != "auto" and scan is not None:
        pairs = scan.statistics.pairs or scan.statistics.rows
        size = training.get("batch_size", _DEFAULTS.batch_size)
        training["steps"] = max(1, math.ceil(asked.n_epochs * pairs / size))
    return training


def _scan(session: Session, tenant_id: str, file_id: str) -> FileScan | None:
    """Read the training file's scan; None for any other id, which job creation resolves or refuses."""
    try:
        return scan_of(find_rows_file(session, tenant_id, file_id, param="training_file"))
    except NotFound:
        return None
