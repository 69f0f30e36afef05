"""The Celery app of a worker: one task, and what its processes do with signals.

Importing this module imports no torch: a job's recipe does, in the pool process that runs it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import cache
from types import FrameType
from typing import Any

from billiard import active_children
from celery import signals

from armature.logging import configure_logging, get_logger
from armature.queue import TASK_NAME, make_celery
from armature_worker.run_job import Workplace, execute
from armature_worker.settings import WorkerServiceSettings
from armature_worker.workdir import remove_stale_directories

_ORPHAN_CHECK_SECONDS = 0.5

_log = get_logger(__name__)
_stopping = threading.Event()
_busy = threading.Event()

settings = WorkerServiceSettings()
app = make_celery(settings.redis)
app.conf.update(
    worker_concurrency=settings.worker.concurrency,
    worker_max_tasks_per_child=settings.worker.max_tasks_per_child,
)


@cache
def workplace() -> Workplace:
    """This process's connections, opened by its first job."""
    return Workplace.open(settings, _stopping)


@app.task(name=TASK_NAME)
def run_job(job_id: str) -> None:
    """Run a job, if it is still to be had."""
    _stopping.clear()
    _busy.set()
    try:
        execute(job_id, workplace())
    finally:
        _busy.clear()


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    configure_logging(settings.log, "worker")


@signals.celeryd_init.connect
def _remove_leftovers(**_: Any) -> None:
    for name in remove_stale_directories(settings.worker.work_dir):
        _log.warning("removed what a killed process left", directory=name)


@signals.worker_shutting_down.connect
def _stop_children(**_: Any) -> None:
    """Celery waits for running tasks; this makes them give their jobs back at their next step."""
    for child in active_children():
        os.kill(child.pid, signal.SIGTERM)


@signals.worker_process_init.connect
def _prepare_child(**_: Any) -> None:
    signal.signal(signal.SIGTERM, _on_sigterm)
    threading.Thread(target=_exit_with, args=[os.getppid()], name="orphan-check", daemon=True).start()


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    if not _busy.is_set():
        sys.exit(0)
    _stopping.set()


def _exit_with(parent: int) -> None:
    """End this process when its parent is gone: an orphan would hold the device against its successor."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_SECONDS)
    os._exit(1)
