"""The relay against a backlog: every queued job is sent, and none is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty
from typing import Any

from celery import Celery
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from armature.db.base import db_now
from armature.db.models import Job
from armature.queue import count_messages, make_celery
from armature.settings import RedisSettings
from benchmarks.api.platform import ControlPlane

QUEUE = "gpu"
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 600.0


def drain(platform: ControlPlane, sessions: sessionmaker[Session]) -> dict[str, Any]:
    """Let the relay send all queued jobs, then read every message that it sent.

    Returns:
        ``jobs_per_s`` from the commit that makes them due to the last message, and counts of the jobs that ``waited``,
        were ``delivered``, ``lost`` or ``delivered_twice``.
    """
    waiting = set(_set_dispatched(sessions, db_now()))
    platform.start("relay")
    celery = make_celery(RedisSettings.model_validate({"url": platform.redis_url}))
    try:
        _set_dispatched(sessions, None)
        started = time.perf_counter()
        _wait_for_messages(celery, len(waiting))
        seconds = time.perf_counter() - started
        delivered = list(_read_messages(celery))
    finally:
        celery.close()
    return {
        "jobs_per_s": round(len(waiting) / seconds, 1),
        "waited": len(waiting),
        "delivered": len(waiting & set(delivered)),
        "lost": len(waiting - set(delivered)),
        "delivered_twice": len(delivered) - len(set(delivered)),
    }


def cancel_waiting(sessions: sessionmaker[Session]) -> None:
    """Cancel every queued job."""
    with sessions.begin() as session:
        ended = {"state": "cancelled", "phase": "cancelled", "finished_at": db_now()}
        session.execute(update(Job).where(Job.state == "queued").values(ended))


def _set_dispatched(sessions: sessionmaker[Session], moment: Any) -> list[str]:
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.state == "queued").values(dispatched_at=moment))
        return list(session.scalars(select(Job.id).where(Job.state == "queued")))


def _wait_for_messages(celery: Celery, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while count_messages(celery, QUEUE) < count and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _read_messages(celery: Celery) -> Iterator[str]:
    """Take every message out of the queue and yield its job id."""
    with celery.connection_for_read() as connection, connection.SimpleQueue(QUEUE, no_ack=True) as messages:
        while True:
            try:
                arguments, *_ = messages.get_nowait().payload
            except Empty:
                return
            yield arguments[0]
