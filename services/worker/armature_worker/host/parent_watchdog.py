"""End this process when its parent ends: an orphan would keep its device from the next worker."""

from __future__ import annotations

import os
import threading
import time

_CHECK_SECONDS = 0.5


def end_with_parent() -> None:
    """Start a thread that watches for the parent's end and then ends this process at once."""
    threading.Thread(target=_watch, args=[os.getppid()], name="parent-watchdog", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_SECONDS)
    os._exit(1)
