"""What a worker and its pool processes tell each other: that it shuts down, that one of them is ready for jobs.

By a file: a signal would kill a process that is idle or still starting, and one that starts later would miss it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal


class Notice:
    """A notice among the processes of the worker with that process id.

    ``shutdown``: the worker ends; jobs look for it at every step and go back to the queue. ``warm``: a pool process has
    imported and connected to what jobs need, so that the worker can be called healthy.
    """

    def __init__(self, work_dir: Path, about: Literal["shutdown", "warm"], worker_pid: int) -> None:
        self._path = work_dir / f"{about}-{worker_pid}"

    def post(self) -> None:
        """Put the notice up."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def withdraw(self) -> None:
        """Take the notice down; also one that an earlier worker with the same process id left."""
        self._path.unlink(missing_ok=True)

    def is_posted(self) -> bool:
        """Whether it is up."""
        return self._path.exists()
