"""Views of jobs in the shapes of OpenAI's fine-tuning API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.base import UnixSeconds, View
from armature.contracts.errors import ErrorObject
from armature.contracts.file_scans import FileScan
from armature.contracts.jobs import JobState
from armature.contracts.specs.size_defaults import SizeDefaults, size_defaults
from armature.db.models import Artifact, File, Job, JobEvent
from armature_api.files.service import scan_of
from armature_api.jobs.service import estimated_finish

STATUSES: dict[JobState, str] = {"cancelling": "running"}
"""OpenAI's word for a state, where it differs."""


class FineTuningJobView(View):
    """A job in OpenAI's shape."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: UnixSeconds
    finished_at: UnixSeconds | None
    estimated_finish: UnixSeconds | None
    status: str
    error: ErrorObject | None
    model: str
    training_file: str
    validation_file: str | None
    fine_tuned_model: str | None = Field(description="the ARM's artifact")
    result_files: tuple[str, ...] = ()
    hyperparameters: dict[str, Any]
    trained_tokens: int | None = None
    seed: int
    metadata: dict[str, str]
    method: dict[str, Any]
    organization_id: str


class FineTuningEventView(View):
    """A log entry in OpenAI's shape."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: UnixSeconds
    level: str
    message: str
    type: str
    data: dict[str, Any]


class FineTuningCheckpointView(View):
    """A checkpoint in OpenAI's shape."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: UnixSeconds
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


def job_view(session: Session, job: Job) -> FineTuningJobView:
    """Build one job's view."""
    return job_views(session, [job])[0]


def job_views(session: Session, jobs: Sequence[Job]) -> list[FineTuningJobView]:
    """Build the jobs' views with three queries for all of them."""
    of_jobs = (Artifact.job_id.in_([job.id for job in jobs]), Artifact.name == "arm")
    arms = dict(session.execute(select(Artifact.job_id, Artifact.id).where(*of_jobs)).all())
    files = session.scalars(select(File).where(File.id.in_({job.spec["pairs"] for job in jobs})))
    scans = {file.id: scan_of(file) for file in files}
    bases = {job.id: job.inputs.get("backbone_model", job.inputs["base_model"])["id"] for job in jobs}
    sizes = {
        row.id: row.manifest["metadata"]["parameters"]
        for row in session.scalars(select(Artifact).where(Artifact.id.in_(bases.values())))
    }
    return [
        _shown(job, arms.get(job.id), scans.get(job.spec["pairs"]), size_defaults("arm", sizes.get(bases[job.id], 0)))
        for job in jobs
    ]


def _shown(job: Job, arm: str | None, scan: FileScan | None, defaults: SizeDefaults) -> FineTuningJobView:
    spec, training = job.spec, job.spec["training"]
    rate, steps = training["learning_rate"], training["steps"] or defaults.steps
    shown_elsewhere = {"kind", "base_model", "pairs", "validation_pairs", "seed"}
    return FineTuningJobView(
        id=job.id,
        created_at=int(job.created_at),
        finished_at=None if job.finished_at is None else int(job.finished_at),
        estimated_finish=estimated_finish(job),
        status=STATUSES.get(job.state, job.state),
        error=None if job.error is None else ErrorObject.model_validate(job.error),
        model=spec["base_model"],
        training_file=spec["pairs"],
        validation_file=spec["validation_pairs"],
        fine_tuned_model=arm,
        hyperparameters={
            "n_epochs": _epochs(steps * training["batch_size"], scan),
            "batch_size": training["batch_size"],
            "learning_rate_multiplier": 1.0 if rate is None else rate / defaults.learning_rate,
        },
        seed=spec["seed"],
        metadata=job.job_metadata,
        method={"type": "arm", "arm": {name: value for name, value in spec.items() if name not in shown_elsewhere}},
        organization_id=job.tenant_id,
    )


def _epochs(trained: int, scan: FileScan | None) -> int | str:
    pairs = scan and (scan.statistics.pairs or scan.statistics.rows)
    return max(1, round(trained / pairs)) if pairs else "auto"


def event_view(event: JobEvent) -> FineTuningEventView:
    """Build one log entry's view."""
    return FineTuningEventView(
        id=f"{event.job_id}-{event.seq}",
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )
