"""The thread that keeps a job's lease alive, carries its news to the database, and hears when to stop."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TypeVar

from sqlalchemy.orm import Session, sessionmaker

from armature.db import jobs
from armature.db.jobs import Position, Pulse
from armature.db.session import DATABASE_OUTAGES
from armature.db.transitions import Event, Lease
from armature.logging import get_logger
from armature.settings import JobSettings
from armature_worker.context.ports import JobCancelled, JobPaused, LeaseLost, WorkerStopping

T = TypeVar("T")

_log = get_logger(__name__)


class Heartbeat:
    """Holds the lease of one attempt; a context manager around the attempt.

    A database that does not answer is asked again until the lease must have run out. From then on another worker may
    own the job, so this one stops.
    """

    def __init__(
        self, sessions: sessionmaker[Session], lease: Lease, settings: JobSettings, is_stopping: Callable[[], bool]
    ) -> None:
        self._sessions = sessions
        self._lease = lease
        self._settings = settings
        self._is_stopping = is_stopping
        self._renewed = time.monotonic()
        self._pulse: Pulse = "running"
        self._beating = threading.Lock()
        self._news = threading.Lock()
        self._position: Position | None = None
        self._metrics: dict[str, Event] = {}
        self._events: list[Event] = []
        self._over = threading.Event()

    def __enter__(self) -> Heartbeat:
        run = contextvars.copy_context().run  # the thread's log lines name the job too
        self._thread = threading.Thread(target=run, args=[self._beat_until_over], name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def report(self, position: Position, metrics: Mapping[str, float] | None = None) -> None:
        """Note where the job is. The next heartbeat carries it, and each phase's newest metrics since the last one."""
        with self._news:
            self._position = position
            if metrics is not None:
                data = {"step": position.step, **metrics}
                self._metrics[position.phase] = Event(position.phase, type="metrics", data=data)

    def log(self, event: Event) -> None:
        """Note a line for the job's log; the next heartbeat carries it."""
        with self._news:
            self._events.append(event)

    def check(self) -> None:
        """Find out whether the attempt may go on; cheap.

        Raises:
            JobCancelled: Somebody cancelled the job.
            LeaseLost: Another attempt may own it.
            JobPaused: Its owner wants it to wait.
            WorkerStopping: This worker was told to shut down.
        """
        self._check_ownership()
        if self._pulse == "pause_requested":
            raise JobPaused(self._lease.job_id)
        if self._is_stopping():
            raise WorkerStopping(self._lease.job_id)

    def write(self, step: Callable[[Session], T]) -> T:
        """Run one step of the job protocol in a transaction, again while the database does not answer.

        Raises:
            LeaseLost: It did not answer until the lease must have run out.
        """
        return self._persist(partial(self._transact, step))

    def flush(self) -> None:
        """Bring the news to the database now: what comes last must not be missing from the log.

        Raises:
            JobCancelled, LeaseLost: See :meth:`check`.
        """
        self._persist(self._beat)
        self._check_ownership()

    def _check_ownership(self) -> None:
        if self._is_lost():
            raise LeaseLost(self._lease.job_id)
        if self._pulse == "cancelling":
            raise JobCancelled(self._lease.job_id)

    def _persist(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                return attempt()
            except DATABASE_OUTAGES as error:
                _log.warning("the database does not answer", error=type(error).__name__)
                if self._is_lost():
                    raise LeaseLost(self._lease.job_id) from error
                time.sleep(self._settings.heartbeat_interval)

    def _transact(self, step: Callable[[Session], T]) -> T:
        with self._sessions.begin() as session:
            return step(session)

    def _is_lost(self) -> bool:
        return self._pulse == "lost" or time.monotonic() - self._renewed > self._settings.lease_seconds

    def _beat_until_over(self) -> None:
        while not self._over.wait(self._settings.heartbeat_interval) and self._pulse != "lost":
            try:
                self._beat()
            except DATABASE_OUTAGES as error:
                _log.warning("the database does not answer a heartbeat", error=type(error).__name__)

    def _beat(self) -> None:
        with self._beating:
            asked = time.monotonic()  # the lease is renewed no earlier than this
            position, events = self._take_news()
            try:
                self._pulse = self._transact(
                    lambda session: jobs.heartbeat(session, self._lease, self._settings.lease_seconds, position, events)
                )
            except DATABASE_OUTAGES:
                self._put_back(position, events)
                raise
            self._renewed = asked

    def _take_news(self) -> tuple[Position | None, list[Event]]:
        with self._news:
            position, events = self._position, self._events
            events.extend(self._metrics.values())
            self._position, self._metrics, self._events = None, {}, []
            return position, events

    def _put_back(self, position: Position | None, events: list[Event]) -> None:
        with self._news:
            self._position = self._position or position
            self._events[:0] = events
