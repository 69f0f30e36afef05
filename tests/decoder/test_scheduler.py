"""Turns and slots, without tensors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from armature.modeling.guided_batch import GuidedRequest
from armature_decoder.engine.request import EngineRequest
from armature_decoder.engine.scheduler import Scheduler


def request(tenant: str) -> EngineRequest:
    return EngineRequest(tenant, GuidedRequest((1,), 1), sink=lambda event: None)


def test_tenants_take_turns_and_keep_their_own_order() -> None:
    scheduler = Scheduler(max_slots=4, max_waiting=100)
    a, b = [request("a") for _ in range(4)], [request("b") for _ in range(2)]
    for one in [*a, *b]:
        scheduler.add(one)
    assert scheduler.admit() == [a[0], b[0], a[1], b[1]]
    assert scheduler.retire({a[0].id, b[1].id}) == [1, 2]
    assert scheduler.running == [b[0], a[1]]
    assert scheduler.admit() == [a[2], a[3]]
    assert scheduler.waiting == 0


def test_cancelled_requests_leave_the_queue() -> None:
    scheduler = Scheduler(max_slots=1, max_waiting=100)
    first, second, third = request("a"), request("a"), request("b")
    for one in (first, second, third):
        scheduler.add(one)
    scheduler.discard_waiting({first.id, third.id})
    assert scheduler.waiting == 1
    assert scheduler.admit() == [second]
    assert not scheduler.idle
    assert scheduler.clear() == [second]
    assert scheduler.idle


@given(st.lists(st.sampled_from(["add a", "add b", "add c", "admit", "retire", "cancel"]), max_size=60))
def test_nobody_is_lost_doubled_or_starved(moves: list[str]) -> None:
    scheduler, waiting, running = Scheduler(max_slots=3, max_waiting=1000), [], []
    for move in moves:
        match move.split():
            case ["add", tenant]:
                waiting.append(request(tenant))
                scheduler.add(waiting[-1])
            case ["admit"]:
                admitted = scheduler.admit()
                assert len(admitted) == min(3 - len(running), len(waiting))
                for one in admitted:
                    ahead = [other for other in waiting if other.tenant == one.tenant]
                    assert ahead[0] is one
                    waiting.remove(one)
                    running.append(one)
            case ["retire"] if running:
                gone = running.pop(0)
                scheduler.retire({gone.id})
            case ["cancel"] if waiting:
                scheduler.discard_waiting({waiting.pop().id})
        assert scheduler.waiting == len(waiting)
        assert scheduler.running == running
