"""The loader's throttle: a loading thread sleeps most of the time while the device is in use, and only then."""

from __future__ import annotations

import cProfile
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from armature_decoder.bundles.throttle import LoaderThrottle
from armature_decoder.engine.device_lock import DeviceLock


class Sleeps:
    """In place of ``time.sleep``: the seconds asked for, by thread."""

    def __init__(self) -> None:
        self.by_thread: dict[int, list[float]] = {}

    def __call__(self, seconds: float) -> None:
        self.by_thread.setdefault(threading.get_ident(), []).append(seconds)

    @property
    def here(self) -> list[float]:
        return self.by_thread.get(threading.get_ident(), [])


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
def busy(sleeps: Sleeps) -> Iterator[LoaderThrottle]:
    """A throttle whose device another thread computes on."""
    lock, computing, over = DeviceLock(), threading.Event(), threading.Event()

    def compute() -> None:
        with lock:
            computing.set()
            over.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute)
        computing.wait()
        yield LoaderThrottle(lock, sleeps)
        over.set()


def call_for(seconds: float) -> None:
    """What a library does: one call after the other."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        len("")


def test_only_the_loading_thread_sleeps_on_a_busy_device(busy: LoaderThrottle, sleeps: Sleeps) -> None:
    end = time.monotonic() + 30
    with busy.slow_down():
        while len(sleeps.here) < 10:
            assert time.monotonic() < end
            call_for(0.003)
    slept = len(sleeps.here)
    call_for(0.02)
    assert len(sleeps.here) == slept
    assert list(sleeps.by_thread) == [threading.get_ident()]


def test_a_loader_sleeps_between_two_steps_too(sleeps: Sleeps) -> None:
    lock, end = DeviceLock(), time.monotonic() + 30
    while not sleeps.here:  # once is enough, but a machine may be busy for longer than "recent"
        assert time.monotonic() < end
        with lock:
            pass
        with LoaderThrottle(lock, sleeps).slow_down():
            call_for(0.003)


def test_a_loader_does_not_sleep_on_an_idle_device(sleeps: Sleeps) -> None:
    with LoaderThrottle(DeviceLock(), sleeps).slow_down():
        call_for(0.03)
    assert not sleeps.here


def test_two_loaders_take_no_more_time_than_one(busy: LoaderThrottle, sleeps: Sleeps) -> None:
    def load() -> None:
        with busy.slow_down():
            call_for(0.02)

    with ThreadPoolExecutor(1) as pool, busy.slow_down():
        call_for(0.02)
        (alone,) = set(sleeps.here)
        pool.submit(load).result()
    (beside,) = (set(slept) for thread, slept in sleeps.by_thread.items() if thread != threading.get_ident())
    assert beside == {2 * alone}


def test_the_profile_hook_goes_with_a_failing_block(busy: LoaderThrottle) -> None:
    def load() -> None:
        with busy.slow_down():
            assert sys.getprofile() is not None
            raise RuntimeError("corrupt")

    with pytest.raises(RuntimeError, match="corrupt"):
        load()
    assert sys.getprofile() is None


def test_a_block_that_is_being_profiled_is_not_throttled(busy: LoaderThrottle, sleeps: Sleeps) -> None:
    with cProfile.Profile() as profile:
        with busy.slow_down():
            call_for(0.02)
        assert sys.getprofile() is profile
    assert not sleeps.here
