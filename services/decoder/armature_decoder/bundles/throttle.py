"""The throttle that keeps loading a bundle from delaying the engines' steps.

A loader runs Python beside the engines, and takes the interpreter's lock from them at each of a step's operations.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from types import FrameType

from armature_decoder.engine.device_lock import DeviceLock

_WORK_SECONDS = 0.001
_SLEEP_SECONDS = 0.004
"""A throttled thread works for one millisecond, then sleeps for four: a step of ten milliseconds loses two at most."""


class LoaderThrottle:
    """Puts loading threads to sleep most of the time while a device is in use."""

    def __init__(self, device_lock: DeviceLock, sleep: Callable[[float], None] = time.sleep) -> None:
        self._device_lock = device_lock
        self._sleep = sleep
        self._guard = Lock()
        self._loading = 0

    @contextmanager
    def slow_down(self) -> Iterator[None]:
        """Run the block; while the device is in use, its thread sleeps four fifths of the time.

        Sleeping happens in the interpreter's profile hook, at any Python call in any library, so no part of the block
        has to be short. A single call that holds the GIL is not divided. A thread has one profile hook: a block that
        is being profiled is not throttled.
        """
        if sys.getprofile() is not None:
            yield
            return
        slept = time.monotonic()

        def sleep_when_due(_frame: FrameType, _event: str, _argument: object) -> None:
            nonlocal slept
            if time.monotonic() - slept < _WORK_SECONDS:
                return
            if self._device_lock.in_use:
                self._sleep(_SLEEP_SECONDS * self._loading)  # several loaders together take no more than one
            slept = time.monotonic()

        with self._guard:
            self._loading += 1
        sys.setprofile(sleep_when_due)
        try:
            yield
        finally:
            sys.setprofile(None)
            with self._guard:
                self._loading -= 1
