"""A process that ends with its parent: an orphan would hold the device against its successor."""

from __future__ import annotations

import os
import threading
import time

_CHECK_SECONDS = 0.5


def end_with_parent() -> None:
    """From now on, watch for the parent's end; this process follows at once."""
    threading.Thread(target=_watch, args=[os.getppid()], name="orphan-check", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_SECONDS)
    os._exit(1)
