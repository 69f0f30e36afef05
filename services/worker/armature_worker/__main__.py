"""``python -m armature_worker [CELERY FLAGS]``: becomes the Celery worker."""

from __future__ import annotations

import os
import sys

from armature_worker.settings import WorkerServiceSettings


def main() -> None:
    """Replace this process by ``celery worker``; flags given are passed on."""
    settings = WorkerServiceSettings()
    command = [sys.executable, "-m", "celery", "-A", "armature_worker.app:app", "--quiet", "worker"]
    queues = ["--queues", ",".join(settings.worker.queues)]
    alone = ["--without-mingle", "--without-gossip", "--without-heartbeat"]  # workers need not know of each other
    name = ["--hostname", f"worker-{os.getpid()}@%h"]
    os.execv(sys.executable, [*command, *queues, *alone, *name, "--loglevel", settings.log.level, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
