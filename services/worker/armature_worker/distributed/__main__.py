"""``python -m armature_worker.distributed CHANNEL``: one rank of a job that runs in several processes."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from armature.startup import startup_without_gc


def main() -> None:
    """Run this rank; :func:`armature_worker.distributed.child.run` has the steps."""
    with startup_without_gc():
        from armature_worker.distributed.child import run

    run(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
