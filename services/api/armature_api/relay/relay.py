"""The relay (``python -m armature_api.relay``): requeue, dispatch, publish and sweep in rounds.

It requeues jobs whose lease expired, sends jobs without a message, publishes the serving snapshot and sweeps the
store. Any number of relays may run: each task is idempotent. An outage of the broker, the store or the database skips
one task for one round.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache

from armature.db import job_queue
from armature.db.artifacts import delete_expired
from armature.db.fair_share import full_tenants
from armature.db.job_queue import Due
from armature.db.session import DATABASE_OUTAGES
from armature.db.sweep import (
    done_with_checkpoints,
    forget_checkpoints,
    forget_idempotency_keys,
    referenced_digests,
    tenant_ids,
)
from armature.errors import Unavailable
from armature.liveness import show_life
from armature.logging import configure_logging, get_logger
from armature.queue import BROKER_OUTAGES, count_messages, send_job
from armature.storage.artifacts import sweep_orphans
from armature.storage.job_checkpoints import checkpoints_prefix, delete_checkpoints, jobs_with_checkpoints
from armature_api.deps import Resources
from armature_api.relay.serving_snapshot import publish_snapshot
from armature_api.settings import ApiServiceSettings

BATCH = 500
"""Jobs sent per round, so that a long queue does not delay the other tasks."""
_OUTAGES = (*BROKER_OUTAGES, *DATABASE_OUTAGES, Unavailable)
_log = get_logger(__name__)


class Relay:
    """The relay's tasks and the loop over them."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._settings = resources.settings.jobs
        self._failing: dict[str, str] = {}
        self._sweep_at = 0.0
        self._is_behind = False

    def run(self, stop: threading.Event) -> None:
        """Run rounds until ``stop`` is set, without a pause while more jobs wait to be sent."""
        while not stop.is_set():
            self.do_round()
            show_life(self._resources.settings.liveness)
            if not self._is_behind:
                stop.wait(self._settings.relay_interval)

    def do_round(self) -> None:
        """Run every task once; a failed task does not stop the others."""
        for task in (self.expire_leases, self.dispatch, self.publish_snapshot, self.sweep_when_due):
            self._try(task)

    def expire_leases(self) -> None:
        """Requeue, or end, jobs whose worker let the lease expire."""
        with self._resources.writers.begin() as session:
            moved = job_queue.expire_leases(session)
        for job in moved:
            _log.warning("lease expired", job_id=job.id, attempt=job.attempt, state=job.state)

    def dispatch(self) -> None:
        """Send a batch of the jobs without a message, and of those whose message must be lost."""
        self._is_behind = False
        with self._resources.readers.begin() as session:
            full, resend_after = full_tenants(session), self._settings.resend_after
            due = job_queue.due_for_dispatch(session, resend_after, BATCH, full_tenants=full)
            queued = job_queue.count_queued(session, {job.queue for job in due if job.dispatched_at is not None})
        missing = [job.id for job in self._without_message(due, queued)]
        with self._resources.writers.begin() as session:
            reserved = job_queue.reserve(session, missing, resend_after)
        unsent = {job.id: job.queue for job in due if job.id in reserved}
        try:
            for job_id, queue in list(unsent.items()):
                send_job(self._resources.celery, job_id, queue)
                del unsent[job_id]
        finally:  # jobs that the broker took before it failed stay marked as sent
            if unsent:
                with self._resources.writers.begin() as session:
                    job_queue.give_back(session, list(unsent))
        if reserved:
            _log.info("jobs sent", job_ids=sorted(reserved))
        self._is_behind = len(due) == BATCH and bool(missing)

    def publish_snapshot(self) -> None:
        """Publish the serving snapshot if it changed."""
        with self._resources.readers.begin() as session:
            if publish_snapshot(session, self._resources.store):
                _log.info("serving snapshot written")

    def sweep_when_due(self) -> None:
        """Sweep once per ``sweep_interval``, but not while more jobs wait to be sent."""
        if not self._is_behind and time.monotonic() >= self._sweep_at:
            self.sweep()
            self._sweep_at = time.monotonic() + self._settings.sweep_interval

    def sweep(self) -> None:
        """Delete expired artifacts, old checkpoints and idempotency keys, and blobs that no row names."""
        store = self._resources.store
        with self._resources.writers.begin() as session:
            forget_checkpoints(session, self._settings.keep_checkpoints)
            forget_idempotency_keys(session)
        with self._resources.readers.begin() as session:
            tenants = tenant_ids(session)
        for tenant_id in tenants:
            saved = jobs_with_checkpoints(store, tenant_id)
            with self._resources.writers.begin() as session:
                expired = delete_expired(session, tenant_id)
            with self._resources.readers.begin() as session:
                over = done_with_checkpoints(session, tenant_id, saved)
                referenced = referenced_digests(session, tenant_id)
            for job in over:
                delete_checkpoints(store, checkpoints_prefix(tenant_id, job.id))
            orphans = sweep_orphans(store, tenant_id, referenced)
            if over or orphans or expired:
                _log.info(
                    "swept", tenant_id=tenant_id, checkpoints=len(over), orphans=orphans, expired_artifacts=expired
                )

    def _without_message(self, due: Sequence[Due], queued: dict[str, int]) -> list[Due]:
        """Select due jobs never sent, and those sent long ago whose queue has fewer messages than jobs.

        A queue with a message per job is only slow; sending again would pile up duplicates.
        """

        @cache
        def messages_are_missing(queue: str) -> bool:
            return count_messages(self._resources.celery, queue) < queued[queue]

        return [job for job in due if job.dispatched_at is None or messages_are_missing(job.queue)]

    def _try(self, task: Callable[[], None]) -> None:
        """Run a task; log the first of equal failures and the recovery."""
        name = task.__name__
        try:
            task()
        except Exception as error:
            kind = type(error).__name__
            if self._failing.get(name) != kind:
                if isinstance(error, _OUTAGES):
                    _log.warning("relay task skipped during an outage", task=name, error=kind)
                else:
                    _log.error("relay task failed", task=name, exc_info=error)
            self._failing[name] = kind
        else:
            if self._failing.pop(name, None):
                _log.info("relay task recovered", task=name)


def main() -> None:
    """Run the relay until SIGTERM or SIGINT; the current round is finished first."""
    settings = ApiServiceSettings()
    configure_logging(settings.log, "relay")
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    resources = Resources.open(settings)
    _log.info("relay started")
    try:
        Relay(resources).run(stop)
    finally:
        resources.close()
    _log.info("relay stopped")
