"""``python -m armature_worker [CELERY FLAGS]``: run the Celery worker."""

from __future__ import annotations

import os
import sys

from armature.settings import ENV_PREFIX
from armature_worker.host.devices import CPU, list_devices
from armature_worker.settings import WorkerServiceSettings


def main() -> None:
    """Replace this process by ``celery worker`` and pass the flags on.

    The devices are probed once, here; pool processes get the result through the environment.
    """
    settings = WorkerServiceSettings()
    devices = list_devices(settings.worker.device) if "gpu" in settings.worker.queues else (CPU,)
    os.environ[f"{ENV_PREFIX}WORKER__DEVICE"] = ",".join(devices)
    concurrency = str(settings.worker.concurrency or len(devices))
    command = [sys.executable, "-m", "celery", "-A", "armature_worker.app:app", "--quiet", "worker"]
    work = ["--queues", ",".join(settings.worker.queues), "--concurrency", concurrency]
    alone = ["--without-mingle", "--without-gossip", "--without-heartbeat"]  # workers are independent of each other
    name = ["--hostname", f"worker-{os.getpid()}@%h"]
    log = ["--loglevel", settings.log.level]
    os.execv(sys.executable, [*command, *work, *alone, *name, *log, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
