"""``python -m armature_worker.distributed CHANNEL``: becomes one of the processes that run a job together."""

from __future__ import annotations

import gc
import sys
from multiprocessing.connection import Connection


def main() -> None:
    """Take part; :func:`armature_worker.distributed.child.run` says how."""
    gc.disable()  # imports leave no garbage, and looking for it takes a third of their time
    from armature_worker.distributed.child import run

    run(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
