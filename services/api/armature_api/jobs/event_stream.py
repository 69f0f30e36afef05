"""Live logs of jobs for any number of listeners: one query a round for all, and no connection held in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.jobs import TERMINAL_STATES, JobEventView
from armature.db.models import Job
from armature.db.session import DATABASE_OUTAGES
from armature.logging import get_logger
from armature_api.jobs.events import events_after

POLL_SECONDS = 0.5
QUIET_SECONDS = 15.0
"""A comment is sent after so much silence, so that nobody on the way takes the connection for dead."""
BATCH = 100
_THREADS = 4
"""That all listeners together may occupy; those that answer requests are others."""
_QUIET = b": ping\n\n"

Tail = tuple[int, bool]
"""A job's newest event, and whether it is the last one."""
T = TypeVar("T")


class JobFeed:
    """Follows jobs in the database. Belongs to one event loop."""

    def __init__(self, readers: sessionmaker[Session]) -> None:
        self._readers = readers
        self._listeners: Counter[str] = Counter()
        self._tails: dict[str, Tail] = {}
        self._news = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None
        self._limiter = CapacityLimiter(_THREADS)
        self._ended = asyncio.Event()

    async def stream(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """The job's events that follow one, as server-sent events.

        Ends after the last event of a job that is over, and when the feed does: the client then goes on elsewhere.
        """
        with self._listening(job_id):
            while True:
                is_news = await self._wait_for_news(job_id, after)
                if self._ended.is_set():
                    return
                if not is_news:
                    yield _QUIET
                    continue
                events = await self._in_thread(partial(_read_events, self._readers, job_id, after))
                for event in events or []:
                    yield f"id: {event.seq}\ndata: {event.model_dump_json()}\n\n".encode()
                    after = event.seq
                newest, over = self._tails[job_id]
                if over and after >= newest:
                    return

    async def end(self) -> None:
        """End all streams, for good. Afterwards the poller holds no connection."""
        self._ended.set()
        async with self._news:
            self._news.notify_all()
        if self._poller is not None and not self._poller.done():
            await self._poller

    async def _wait_for_news(self, job_id: str, after: int) -> bool:
        def is_news() -> bool:
            newest, over = self._tails.get(job_id, (0, False))
            return newest > after or over or self._ended.is_set()

        try:
            async with asyncio.timeout(QUIET_SECONDS), self._news:
                return await self._news.wait_for(is_news)
        except TimeoutError:
            return False

    @contextmanager
    def _listening(self, job_id: str) -> Iterator[None]:
        self._listeners[job_id] += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            self._listeners[job_id] -= 1
            if not self._listeners[job_id]:
                del self._listeners[job_id]
                self._tails.pop(job_id, None)

    async def _poll(self) -> None:
        while self._listeners and not self._ended.is_set():
            tails = await self._in_thread(partial(_read_tails, self._readers, list(self._listeners)))
            if tails is not None:
                async with self._news:
                    self._tails.update({job_id: tail for job_id, tail in tails.items() if job_id in self._listeners})
                    self._news.notify_all()
            await self._pause()

    async def _in_thread(self, read: partial[T]) -> T | None:
        """None while the database does not answer: listeners hear of it later."""
        try:
            return await to_thread.run_sync(read, limiter=self._limiter)
        except DATABASE_OUTAGES as error:
            get_logger(__name__).warning("the database does not answer the job feed", reason=type(error).__name__)
            await self._pause()
            return None

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), POLL_SECONDS)


def _read_tails(readers: sessionmaker[Session], job_ids: list[str]) -> dict[str, Tail]:
    statement = select(Job.id, Job.last_event_seq, Job.state).where(Job.id.in_(job_ids))
    with readers.begin() as session:
        return {id: (seq, state in TERMINAL_STATES) for id, seq, state in session.execute(statement)}


def _read_events(readers: sessionmaker[Session], job_id: str, after: int) -> list[JobEventView]:
    with readers.begin() as session:
        return events_after(session, job_id, after, BATCH)[0]
