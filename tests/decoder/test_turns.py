"""Turns on a device: one at a time, in the order of asking, and given back whatever happens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from armature_decoder.engine.turns import Turns
from tests.support.processes import wait_until


def test_turns_are_one_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns.take():
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (inside, most) == (0, 1)


def test_whoever_asks_again_comes_after_those_who_wait() -> None:
    turns, order = Turns(), list[str]()

    def ask(name: str) -> None:
        with turns.take():
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with turns.take():
            pool.submit(ask, "first")
            wait_until(lambda: len(turns._queue) == 2)
            pool.submit(ask, "second")
            wait_until(lambda: len(turns._queue) == 3)
        ask("again")
    assert order == ["first", "second", "again"]


def test_a_turn_that_fails_is_given_back() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError, match="device fault"), turns.take():
        raise RuntimeError("device fault")
    taken = threading.Event()
    with turns.take():
        taken.set()
    assert taken.is_set()
