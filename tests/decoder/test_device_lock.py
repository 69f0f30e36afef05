"""The device lock: one holder at a time, in the order of asking, released whatever happens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from armature_decoder.engine.device_lock import DeviceLock
from tests.support.processes import wait_until


def test_one_thread_at_a_time_holds_the_device_lock() -> None:
    lock, inside, most = DeviceLock(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (inside, most) == (0, 1)


def test_a_thread_that_asks_again_comes_after_those_that_wait() -> None:
    lock, order = DeviceLock(), list[str]()

    def ask(name: str) -> None:
        with lock:
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with lock:
            pool.submit(ask, "first")
            wait_until(lambda: len(lock._queue) == 2)
            pool.submit(ask, "second")
            wait_until(lambda: len(lock._queue) == 3)
        ask("again")
    assert order == ["first", "second", "again"]


def test_a_failing_block_releases_the_device_lock() -> None:
    lock = DeviceLock()
    with pytest.raises(RuntimeError, match="device fault"), lock:
        raise RuntimeError("device fault")
    taken = threading.Event()
    with lock:
        taken.set()
    assert taken.is_set()


def test_a_lock_that_was_never_held_is_not_in_use() -> None:
    lock = DeviceLock()
    assert not lock.in_use
    with lock:
        assert lock.in_use
