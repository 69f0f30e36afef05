"""``python -m armature_worker.distributed CHANNEL``: becomes one of the processes that run a job together."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from armature.startup import startup_without_gc


def main() -> None:
    """Take part; :func:`armature_worker.distributed.child.run` says how."""
    with startup_without_gc():
        from armature_worker.distributed.child import run

    run(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
