"""The Celery app of a worker: one task, and what its processes do at their start and end.

Importing this module imports no torch: a pool process does as it starts, so that no job waits for it.
"""

from __future__ import annotations

import atexit
import os
import threading
from functools import cache
from typing import Any

from celery import bootsteps, signals

from armature.liveness import LIVENESS_INTERVAL, show_life
from armature.logging import configure_logging, get_logger
from armature.queue import TASK_NAME, make_celery
from armature_worker.host.parent_watchdog import end_with_parent
from armature_worker.host.process_flags import Notice
from armature_worker.host.workdir import remove_stale_directories
from armature_worker.runtime.resources import WorkerResources
from armature_worker.runtime.runner import execute
from armature_worker.settings import WorkerServiceSettings

_log = get_logger(__name__)
_retired = threading.Event()
_CHECK_SECONDS = 0.2

settings = WorkerServiceSettings()
app = make_celery(settings.redis)
app.conf.update(worker_max_tasks_per_child=settings.worker.max_tasks_per_child)


class LivenessStep(bootsteps.StartStopStep):
    """Signs of life from the event loop. Started anew with every connection to the broker: losing one clears timers."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Put the timer up."""
        consumer.timer.call_repeatedly(LIVENESS_INTERVAL, _show_life_once_warm)


app.steps["consumer"].add(LivenessStep)


def _show_life_once_warm() -> None:
    if _warm(os.getpid()).is_posted():
        show_life(settings.liveness)


def _warm(worker_pid: int) -> Notice:
    return Notice(settings.worker.work_dir, "warm", worker_pid)


def _shutdown(worker_pid: int) -> Notice:
    return Notice(settings.worker.work_dir, "shutdown", worker_pid)


@cache
def resources() -> WorkerResources:
    """Open the resources of this pool process, once."""
    return WorkerResources.open(settings, _shutdown(os.getppid()).is_posted, _retired.set)


@app.task(name=TASK_NAME)
def run_job(job_id: str) -> None:
    """Run a job, if it is still to be had."""
    execute(job_id, resources())
    if _retired.is_set():
        os._exit(1)  # the pool starts a fresh process; how the job went is written already


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    configure_logging(settings.log, "worker")


@signals.worker_process_init.connect
def _remove_leftovers(**_: Any) -> None:
    """When the worker's first process starts, and when one takes the place of one that was killed."""
    for name in remove_stale_directories(settings.worker.work_dir):
        _log.warning("removed what a killed process left", directory=name)


@signals.worker_init.connect
def _withdraw_notices(**_: Any) -> None:
    for notice in (_warm(os.getpid()), _shutdown(os.getpid())):
        notice.withdraw()
        atexit.register(notice.withdraw)


@signals.worker_shutting_down.connect
def _give_jobs_back(**_: Any) -> None:
    """Celery waits for running tasks, which may take hours; this makes them end at their next step."""
    _shutdown(os.getpid()).post()


@signals.worker_process_init.connect
def _watch_parent(**_: Any) -> None:
    end_with_parent()


@signals.worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """The last thing before the process takes jobs. It takes seconds, for which a shutdown does not wait."""
    is_warm = threading.Event()
    threading.Thread(target=_end_with_shutdown, args=[is_warm], name="warm-up", daemon=True).start()
    if settings.worker.preload:
        resources().warm_up()
    is_warm.set()
    _warm(os.getppid()).post()


def _end_with_shutdown(is_warm: threading.Event) -> None:
    while not is_warm.wait(_CHECK_SECONDS):
        if _shutdown(os.getppid()).is_posted():
            os._exit(0)
