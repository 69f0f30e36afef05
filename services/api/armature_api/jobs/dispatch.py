"""The fast path from a committed job to a worker. Where it fails, the relay sends the job a moment later."""

from __future__ import annotations

from threading import BoundedSemaphore

from sqlalchemy.exc import SQLAlchemyError

from armature.db.jobs import mark_dispatched
from armature.logging import get_logger
from armature.queue import BROKER_OUTAGES, send_job
from armature_api.deps import Resources

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
