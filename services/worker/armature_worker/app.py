"""The Celery app of a worker: its one task, and what its processes do when they start and stop.

Importing this module imports no torch. Each pool process imports torch as it warms up, so that no job waits for it.
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
from armature_worker.host.process_flags import ProcessFlag
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
    """Liveness signal from the event loop.

    Celery starts this step anew for each broker connection: a lost connection clears the timers.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Start the timer."""
        consumer.timer.call_repeatedly(LIVENESS_INTERVAL, _show_life_once_warm)


app.steps["consumer"].add(LivenessStep)


def _show_life_once_warm() -> None:
    if _warm_flag(os.getpid()).is_set():
        show_life(settings.liveness)


def _warm_flag(worker_pid: int) -> ProcessFlag:
    return ProcessFlag(settings.worker.work_dir, "warm", worker_pid)


def _shutdown_flag(worker_pid: int) -> ProcessFlag:
    return ProcessFlag(settings.worker.work_dir, "shutdown", worker_pid)


@cache
def resources() -> WorkerResources:
    """Open the resources of this pool process, once."""
    return WorkerResources.open(settings, _shutdown_flag(os.getppid()).is_set, _retired.set)


@app.task(name=TASK_NAME)
def run_job(job_id: str) -> None:
    """Run one attempt at a job, unless it can not be claimed."""
    execute(job_id, resources())
    if _retired.is_set():
        os._exit(1)  # the pool starts a fresh process; the job's outcome is in the database already


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    configure_logging(settings.log, "worker")


@signals.worker_process_init.connect
def _remove_leftovers(**_: Any) -> None:
    """Remove job directories of killed processes when a pool process starts."""
    for name in remove_stale_directories(settings.worker.work_dir):
        _log.warning("stale job directory removed", directory=name)


@signals.worker_init.connect
def _clear_flags(**_: Any) -> None:
    for flag in (_warm_flag(os.getpid()), _shutdown_flag(os.getpid())):
        flag.clear()
        atexit.register(flag.clear)


@signals.worker_shutting_down.connect
def _give_jobs_back(**_: Any) -> None:
    """Make running jobs end at their next step: Celery waits for its tasks, which may take hours."""
    _shutdown_flag(os.getpid()).set()


@signals.worker_process_init.connect
def _watch_parent(**_: Any) -> None:
    end_with_parent()


@signals.worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Import what jobs need before the process takes the first one; a shutdown ends it at once."""
    is_warm = threading.Event()
    threading.Thread(target=_end_with_shutdown, args=[is_warm], name="warm-up", daemon=True).start()
    if settings.worker.preload:
        resources().warm_up()
    is_warm.set()
    _warm_flag(os.getppid()).set()


def _end_with_shutdown(is_warm: threading.Event) -> None:
    while not is_warm.wait(_CHECK_SECONDS):
        if _shutdown_flag(os.getppid()).is_set():
            os._exit(0)
