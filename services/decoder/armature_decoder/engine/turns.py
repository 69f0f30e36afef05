"""Whose turn it is on a device: engines step, and a bundle is loaded, one after the other.

Threads that compute side by side are slower than in turn. Each of a step's hundreds of operations lets go of the
interpreter's lock and has to get it back, and whoever computes in Python meanwhile keeps it for milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Turns:
    """A lock that goes to whoever has asked for it first, so that nobody who gives it back and asks again starves
    the others, as a plain one would have it."""

    def __init__(self) -> None:
        self._changing = Lock()
        self._queue: deque[Lock] = deque()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for those who asked before, and keep the others waiting until the end of the block."""
        mine = Lock()
        mine.acquire()
        with self._changing:
            self._queue.append(mine)
            if len(self._queue) == 1:
                mine.release()
        mine.acquire()
        try:
            yield
        finally:
            with self._changing:
                self._queue.popleft()
                if self._queue:
                    self._queue[0].release()
