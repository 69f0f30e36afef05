"""Views of a job's log and of its checkpoints."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.base import digest
from armature.contracts.jobs import JobCheckpoint, JobCheckpointView, JobEventView
from armature.db.models import Job, JobEvent


def events_after(session: Session, job_id: str, seq: int, limit: int) -> tuple[list[JobEventView], bool]:
    """List the job's events above number ``seq``, oldest first, and whether more follow."""
    statement = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq)
    found = session.scalars(statement.order_by(JobEvent.seq).limit(limit + 1)).all()
    return [_event_view(event) for event in found[:limit]], len(found) > limit


def checkpoints_of(job: Job) -> list[JobCheckpointView]:
    """List the job's checkpoints: the newest one, while it is kept."""
    if job.checkpoint is None:
        return []
    saved = JobCheckpoint.model_validate(job.checkpoint)
    view = JobCheckpointView(
        id=f"{job.id}-{saved.step}",
        job_id=job.id,
        created_at=saved.saved_at or int(job.progress_at or job.created_at),
        step_number=saved.step,
        bytes=saved.size(),
        sha256=digest([file.model_dump(mode="json") for file in saved.files]),
    )
    return [view]


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
