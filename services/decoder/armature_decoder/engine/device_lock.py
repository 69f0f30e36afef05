"""The lock that lets one engine at a time compute on a device.

Engines that compute side by side are slower than in turn: each of a step's hundreds of operations releases the
interpreter's lock and has to get it back, and a thread that runs Python meanwhile keeps it for milliseconds.
"""

from __future__ import annotations

import math
import time
from collections import deque
from threading import Lock

_RECENT_SECONDS = 0.05


class DeviceLock:
    """A first-come, first-served lock on a device, held as a ``with`` block.

    A plain lock is unfair: a thread that releases it and asks again at once starves those that wait.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._queue: deque[Lock] = deque()  # a closed lock per thread, the holder's first; released at its turn
        self._last_acquired = -math.inf

    def __enter__(self) -> None:
        ticket = Lock()
        ticket.acquire()
        with self._guard:
            self._queue.append(ticket)
            if len(self._queue) == 1:
                ticket.release()
        ticket.acquire()
        self._last_acquired = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._queue.popleft()
            if self._queue:
                self._queue[0].release()

    @property
    def in_use(self) -> bool:
        """Whether a thread holds the lock, waits for it, or acquired it within the last 50 ms."""
        return bool(self._queue) or time.monotonic() - self._last_acquired < _RECENT_SECONDS
