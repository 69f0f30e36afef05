"""Turns on a device: one at a time, in the order of asking, given back whatever happens; and who gives way rests."""

from __future__ import annotations

import cProfile
import sys
import threading
import time
from collections.abc import Iterator
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


class Rests:
    """In place of ``time.sleep``: by thread, how long it was told to rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, list[float]] = {}
        monkeypatch.setattr("armature_decoder.engine.turns.time.sleep", self)

    def __call__(self, seconds: float) -> None:
        self.of.setdefault(threading.get_ident(), []).append(seconds)

    @property
    def mine(self) -> list[float]:
        return self.of.get(threading.get_ident(), [])


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> Rests:
    return Rests(monkeypatch)


def call_for(seconds: float) -> None:
    """What a library does: one call after the other."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        len("")


@pytest.fixture
def busy() -> Iterator[Turns]:
    """Turns of a device that somebody else computes on."""
    turns, computing, over = Turns(), threading.Event(), threading.Event()

    def compute() -> None:
        with turns.take():
            computing.set()
            over.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute)
        computing.wait()
        yield turns
        over.set()


def test_who_gives_way_rests_while_others_take_turns(busy: Turns, rests: Rests) -> None:
    end = time.monotonic() + 30
    with busy.give_way():
        while len(rests.mine) < 10:
            assert time.monotonic() < end
            call_for(0.003)
    rested = len(rests.mine)
    call_for(0.02)
    assert len(rests.mine) == rested
    assert list(rests.of) == [threading.get_ident()]  # nobody else is held up


def test_who_gives_way_rests_between_two_turns_too(rests: Rests) -> None:
    turns, end = Turns(), time.monotonic() + 30
    while not rests.mine:  # once is enough, but a machine may be busy for longer than "lately"
        assert time.monotonic() < end
        with turns.take():
            pass
        with turns.give_way():
            call_for(0.003)


def test_nobody_rests_on_a_device_that_is_not_in_use(rests: Rests) -> None:
    with Turns().give_way():
        call_for(0.03)
    assert not rests.mine


def test_two_who_give_way_take_no_more_than_one(busy: Turns, rests: Rests) -> None:
    def load() -> None:
        with busy.give_way():
            call_for(0.02)

    with ThreadPoolExecutor(1) as pool, busy.give_way():
        call_for(0.02)
        (alone,) = set(rests.mine)
        pool.submit(load).result()
    (beside,) = (set(of) for thread, of in rests.of.items() if thread != threading.get_ident())
    assert beside == {2 * alone}


def test_the_hook_goes_with_the_block_whatever_happens(busy: Turns) -> None:
    def load() -> None:
        with busy.give_way():
            assert sys.getprofile() is not None
            raise RuntimeError("corrupt")

    with pytest.raises(RuntimeError, match="corrupt"):
        load()
    assert sys.getprofile() is None


def test_a_profiler_keeps_its_place(busy: Turns, rests: Rests) -> None:
    with cProfile.Profile() as profile:
        with busy.give_way():
            call_for(0.02)
        assert sys.getprofile() is profile
    assert not rests.mine
