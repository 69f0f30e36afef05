"""The heartbeat thread: it renews a job's lease, writes its progress, reads whether it must stop."""

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
    """Keeper of one attempt's lease; a context manager around the attempt.

    During a database outage it retries until the lease must have expired. From then on another worker may own the job,
    so the attempt stops.
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
        self._pending = threading.Lock()
        self._position: Position | None = None
        self._metrics: dict[str, Event] = {}
        self._events: list[Event] = []
        self._over = threading.Event()

    def __enter__(self) -> Heartbeat:
        run = contextvars.copy_context().run  # so that the thread's log lines name the job too
        self._thread = threading.Thread(target=run, args=[self._beat_until_over], name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def report(self, position: Position, metrics: Mapping[str, float] | None = None) -> None:
        """Record the job's position; the next heartbeat writes it, with the newest metrics of each phase."""
        with self._pending:
            self._position = position
            if metrics is not None:
                data = {"step": position.step, **metrics}
                self._metrics[position.phase] = Event(position.phase, type="metrics", data=data)

    def log(self, event: Event) -> None:
        """Record an event for the job's log; the next heartbeat writes it."""
        with self._pending:
            self._events.append(event)

    def check(self) -> None:
        """Check whether the attempt may go on; cheap, since it reads the last heartbeat's result.

        Raises:
            JobCancelled: The job was cancelled.
            LeaseLost: Another attempt may own the job.
            JobPaused: A pause was requested.
            WorkerStopping: This worker is shutting down.
        """
        self._check_ownership()
        if self._pulse == "pause_requested":
            raise JobPaused(self._lease.job_id)
        if self._is_stopping():
            raise WorkerStopping(self._lease.job_id)

    def write(self, step: Callable[[Session], T]) -> T:
        """Run one step of the job protocol in a transaction; retry it during a database outage.

        Raises:
            LeaseLost: The outage lasted until the lease must have expired.
        """
        return self._persist(partial(self._transact, step))

    def flush(self) -> None:
        """Write pending progress and events now, so that the last ones are not missing from the log.

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
                _log.warning("database unavailable", error=type(error).__name__)
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
                _log.warning("database unavailable, heartbeat missed", error=type(error).__name__)

    def _beat(self) -> None:
        with self._beating:
            sent = time.monotonic()  # the database renews the lease at this time or later
            position, events = self._take_pending()
            try:
                self._pulse = self._transact(
                    lambda session: jobs.heartbeat(session, self._lease, self._settings.lease_seconds, position, events)
                )
            except DATABASE_OUTAGES:
                self._put_back(position, events)
                raise
            self._renewed = sent

    def _take_pending(self) -> tuple[Position | None, list[Event]]:
        with self._pending:
            position, events = self._position, self._events
            events.extend(self._metrics.values())
            self._position, self._metrics, self._events = None, {}, []
            return position, events

    def _put_back(self, position: Position | None, events: list[Event]) -> None:
        with self._pending:
            self._position = self._position or position
            self._events[:0] = events
