"""Send a job's message right after its commit. If that fails, the relay sends it a moment later."""

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
"""Threads that may send at the same time: a broker that drops packets must not block all threads of the pool."""


def dispatch(resources: Resources, job_id: str, queue: str) -> None:
    """Send a job's message once and mark the job as sent; after a logged failure the relay sends it."""
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
    """The end of every route that queues a job: the ``Location`` header and the message after the commit."""

    resources: Resources
    response: Response
    after_commit: BackgroundTasks

    @property
    def max_attempts(self) -> int:
        """Attempts that a new job has."""
        return self.resources.settings.jobs.max_attempts

    def accept(self, session: Session, job: Job) -> JobView:
        """Set ``Location``, send the message after the commit, and return the job's view."""
        self.response.headers["Location"] = f"/v1/jobs/{job.id}"
        self.after_commit.add_task(dispatch, self.resources, job.id, job.queue)
        return job_views(session, [job])[0]


def _submission(resources: ResourcesDep, response: Response, after_commit: BackgroundTasks) -> Submission:
    return Submission(resources, response, after_commit)


SubmissionDep = Annotated[Submission, Depends(_submission)]
