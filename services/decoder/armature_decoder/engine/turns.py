"""Who computes on a device: engines one after the other, and whoever loads a bundle out of their way.

Threads that compute side by side are slower than in turn. Each of a step's hundreds of operations lets go of the
interpreter's lock and has to get it back, and whoever computes in Python meanwhile keeps it for milliseconds.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import FrameType

_WORK_SECONDS = 0.001
_REST_SECONDS = 0.004
"""Who gives way works for so long, then rests for so long: a step of ten milliseconds loses two of them at most."""
_LATELY_SECONDS = 0.05
"""A device that nobody has computed on for so long is not in use."""


class Turns:
    """A lock that goes to whoever has asked for it first, so that nobody who gives it back and asks again starves
    the others, as a plain one would have it."""

    def __init__(self) -> None:
        self._changing = Lock()
        self._queue: deque[Lock] = deque()
        self._last_taken = -math.inf
        self._giving_way = 0

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
        self._last_taken = time.monotonic()
        try:
            yield
        finally:
            with self._changing:
                self._queue.popleft()
                if self._queue:
                    self._queue[0].release()

    @contextmanager
    def give_way(self) -> Iterator[None]:
        """Run the block beside those who take turns: as long as they do, this thread rests most of the time.

        It may rest wherever Python calls a function, in whatever library, so no piece of the block has to be short.
        Only a single call that keeps the interpreter can not be divided. A block that is being profiled never rests:
        a thread has one hook for both.
        """
        if sys.getprofile() is not None:
            yield
            return
        rested = time.monotonic()

        def rest_when_due(_frame: FrameType, _event: str, _argument: object) -> None:
            nonlocal rested
            now = time.monotonic()
            if now - rested < _WORK_SECONDS:
                return
            if self._queue or now - self._last_taken < _LATELY_SECONDS:
                time.sleep(_REST_SECONDS * self._giving_way)  # together they take no more than one would
            rested = time.monotonic()

        with self._changing:
            self._giving_way += 1
        sys.setprofile(rest_when_due)
        try:
            yield
        finally:
            sys.setprofile(None)
            with self._changing:
                self._giving_way -= 1
