"""Job logs as server-sent events: one query per poll for all listeners, no connection in between."""

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

BATCH = 100
_THREADS = 4
"""Threads that all listeners share; requests are served by others."""
_COMMENT = b": ping\n\n"

Tail = tuple[int, bool]
"""The number of a job's newest event, and whether the job is over."""
T = TypeVar("T")


class JobEventStream:
    """The logs of jobs, followed in the database for any number of listeners. Belongs to one event loop.

    Args:
        readers: Sessions that act for the whole system.
        poll_seconds: Pause between two queries for news.
        quiet_seconds: Silence after which a comment is sent: proxies close idle connections.
    """

    def __init__(
        self, readers: sessionmaker[Session], *, poll_seconds: float = 0.5, quiet_seconds: float = 15.0
    ) -> None:
        self._readers = readers
        self._poll_seconds = poll_seconds
        self._quiet_seconds = quiet_seconds
        self._listeners: Counter[str] = Counter()
        self._tails: dict[str, Tail] = {}
        self._news = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None
        self._limiter = CapacityLimiter(_THREADS)
        self._ended = asyncio.Event()

    async def follow(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """Yield the job's events with a number above ``after`` as server-sent events, and comments in between.

        Ends after the last event of a job that is over, and on :meth:`end`: the client then reconnects elsewhere.
        """
        with self._listening(job_id):
            while True:
                is_news = await self._wait_for_news(job_id, after)
                if self._ended.is_set():
                    return
                if not is_news:
                    yield _COMMENT
                    continue
                events = await self._in_thread(partial(_read_events, self._readers, job_id, after))
                for event in events or []:
                    yield f"id: {event.seq}\ndata: {event.model_dump_json()}\n\n".encode()
                    after = event.seq
                newest, over = self._tails[job_id]
                if over and after >= newest:
                    return

    async def end(self) -> None:
        """End all streams for good and stop the poller; it holds no connection afterwards."""
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
            async with asyncio.timeout(self._quiet_seconds), self._news:
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
        """Run ``read`` in a thread; None during an outage: the events then arrive with a later poll."""
        try:
            return await to_thread.run_sync(read, limiter=self._limiter)
        except DATABASE_OUTAGES as error:
            reason = type(error).__name__
            get_logger(__name__).warning("job event stream waits for the database", reason=reason)
            await self._pause()
            return None

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), self._poll_seconds)


def _read_tails(readers: sessionmaker[Session], job_ids: list[str]) -> dict[str, Tail]:
    statement = select(Job.id, Job.last_event_seq, Job.state).where(Job.id.in_(job_ids))
    with readers.begin() as session:
        return {id: (seq, state in TERMINAL_STATES) for id, seq, state in session.execute(statement)}


def _read_events(readers: sessionmaker[Session], job_id: str, after: int) -> list[JobEventView]:
    with readers.begin() as session:
        return events_after(session, job_id, after, BATCH)[0]
