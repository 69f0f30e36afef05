"""How a worker tells its pool processes that it shuts down, so that running jobs go back to the queue at once.

By a file: a signal would kill a process that is idle or still starting, and one that starts later would miss it.
"""

from __future__ import annotations

import atexit
from pathlib import Path


class ShutdownNotice:
    """A notice from the worker with that process id; its pool processes look for it at every step of a job."""

    def __init__(self, work_dir: Path, worker_pid: int) -> None:
        self._path = work_dir / f"shutdown-{worker_pid}"

    def post(self) -> None:
        """Put the notice up for as long as the worker lives."""
        self._path.touch()
        atexit.register(self.withdraw)

    def withdraw(self) -> None:
        """Take the notice down; also one that an earlier worker with the same process id left."""
        self._path.unlink(missing_ok=True)

    def is_posted(self) -> bool:
        """Whether the worker shuts down."""
        return self._path.exists()
