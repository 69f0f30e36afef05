"""The fast path from a committed job to a worker. Where it fails, the relay sends the job a moment later."""

from __future__ import annotations

from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Response
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from armature.contracts.jobs import JobView
from armature.db.job_queue import mark_dispatched
from armature.db.models import Job
from armature.logging import get_logger
from armature.queue import BROKER_OUTAGES, send_job
from armature_api.deps import Resources, ResourcesDep
from armature_api.jobs.service import job_views

_SLOTS = BoundedSemaphore(4)
"""A broker that swallows packets may hold this many of the threads that requests are served by, not all of them."""


def dispatch(resources: Resources, job_id: str, queue: str) -> None:
    """Send a job's message once and note that it was sent; failures are logged and harmless."""
    if not _SLOTS.acquire(blocking=False):
        return
    try:
        send_job(resources.celery, job_id, queue)
        with resources.writers.begin() as session:
            mark_dispatched(session, [job_id])
    except (*BROKER_OUTAGES, SQLAlchemyError) as error:
        get_logger(__name__).warning("job left to the relay", job_id=job_id, reason=type(error).__name__)
    finally:
        _SLOTS.release()


@dataclass(frozen=True)
class Submission:
    """What every route that puts a job into the queue does with it."""

    resources: Resources
    response: Response
    after_commit: BackgroundTasks

    @property
    def max_attempts(self) -> int:
        """Of a new job."""
        return self.resources.settings.jobs.max_attempts

    def accept(self, session: Session, job: Job) -> JobView:
        """Say where the job is to be found, and send its message once it is committed."""
        self.response.headers["Location"] = f"/v1/jobs/{job.id}"
        self.after_commit.add_task(dispatch, self.resources, job.id, job.queue)
        return job_views(session, [job])[0]


def _submission(resources: ResourcesDep, response: Response, after_commit: BackgroundTasks) -> Submission:
    return Submission(resources, response, after_commit)


SubmissionDep = Annotated[Submission, Depends(_submission)]
