"""Flags that a worker and its pool processes set for each other, as files of the work directory.

Files, since a signal would kill an idle or starting process, and a process that starts later would miss it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal


class ProcessFlag:
    """A flag shared by the processes of the worker with process id ``worker_pid``.

    ``shutdown``: the worker is ending; running jobs check it at every step and go back to the queue. ``warm``: a pool
    process has its imports and connections, so the worker may report itself healthy.
    """

    def __init__(self, work_dir: Path, name: Literal["shutdown", "warm"], worker_pid: int) -> None:
        self._path = work_dir / f"{name}-{worker_pid}"

    def set(self) -> None:
        """Set the flag."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def clear(self) -> None:
        """Clear the flag, also one left by an earlier worker that had the same process id."""
        self._path.unlink(missing_ok=True)

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return self._path.exists()
