"""Turns and slots, without tensors."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.inference.batch import Joining
from armature.inference.kv_memory import KvMemory
from armature.inference.request import Guide, GuidedRequest
from armature_decoder.engine.request import EngineRequest
from armature_decoder.engine.scheduler import KvBudget, Scheduler


def request(tenant: str, prompt: int = 1, guided: bool = False, arm_prompt: int = 0) -> EngineRequest:
    guide = Guide((1.0,), 2.0) if guided else None
    sequence = GuidedRequest((1,) * prompt, 1, guide=guide, arm_prompt=(1,) * arm_prompt)
    return EngineRequest(tenant, sequence, sink=lambda event: None)


def admit(scheduler: Scheduler) -> list[EngineRequest]:
    """Admit, and let joining requests run at once."""
    scheduler.admit()
    admitted = []
    while (cohort := scheduler.next_cohort()) is not None:
        scheduler.run(cohort)
        admitted += cohort.requests
    return admitted


def test_tenants_take_turns_and_keep_their_own_order() -> None:
    scheduler = Scheduler(max_slots=4, max_waiting=100)
    a, b = [request("a") for _ in range(4)], [request("b") for _ in range(2)]
    for one in [*a, *b]:
        scheduler.add(one)
    assert admit(scheduler) == [a[0], b[0], a[1], b[1]]
    assert scheduler.retire({a[0].id, b[1].id}) == [0, 3]
    assert scheduler.running == [b[0], a[1]]
    assert admit(scheduler) == [a[2], a[3]]
    assert scheduler.waiting == 0


def test_cancelled_requests_leave_the_queue() -> None:
    scheduler = Scheduler(max_slots=1, max_waiting=100)
    first, second, third = request("a"), request("a"), request("b")
    for one in (first, second, third):
        scheduler.add(one)
    scheduler.discard({first.id, third.id})
    assert scheduler.waiting == 1
    assert admit(scheduler) == [second]
    assert not scheduler.idle
    assert scheduler.clear() == [second]
    assert scheduler.idle


def test_short_prompts_join_together_and_long_ones_alone() -> None:
    scheduler = Scheduler(max_slots=10, max_waiting=100, chunk=8)
    lengths = [3, 5, 1, 20, 2, 2]
    everyone = [request("a", length) for length in lengths] + [request("a", 2, guided=True)]
    for one in everyone:
        scheduler.add(one)
    scheduler.admit()
    assert scheduler.joining == 7
    cohorts = []
    while (cohort := scheduler.next_cohort()) is not None:
        cohorts.append([one.sequence.prompt_tokens for one in cohort.requests])
    assert cohorts == [[3, 5], [1], [20], [2, 2, 4]]


def test_prompts_of_an_arms_own_model_count_in_a_chunk() -> None:
    scheduler = Scheduler(max_slots=10, max_waiting=100, chunk=16)
    separate = [request("a", 2, guided=True, arm_prompt=6) for _ in range(2)]  # 2 + 6 + 6 tokens each
    for one in separate:
        scheduler.add(one)
    scheduler.admit()
    cohorts = list(iter(scheduler.next_cohort, None))
    assert [cohort.requests for cohort in cohorts] == [[one] for one in separate]


def test_a_long_prompt_takes_turns_with_those_that_come_after_it() -> None:
    scheduler = Scheduler(max_slots=3, max_waiting=100, chunk=8)
    long, short = request("a", 100), request("a")
    scheduler.add(long)
    scheduler.admit()
    cohort = scheduler.next_cohort()
    assert cohort is not None
    scheduler.postpone(cohort)
    scheduler.add(short)
    scheduler.admit()
    assert scheduler.next_cohort() is cohort
    assert scheduler.joining == 2  # its turn takes no slot away from it
    scheduler.postpone(cohort)
    following = scheduler.next_cohort()
    assert following is not None
    assert following.requests == [short]
    scheduler.run(following)
    scheduler.discard({long.id})
    assert scheduler.joining == 0
    assert scheduler.running == [short]


SYSTEM = tuple(range(100))


def asking(question: int, length: int = 20, scope: str | None = "a", begin: int = 100) -> EngineRequest:
    """A prompt that begins as the others do, of one tenant's."""
    prompt = (*SYSTEM[:begin], *(200 + question,) * length)
    return EngineRequest("a", GuidedRequest(prompt, 1, namespace=scope), sink=lambda event: None)


def turns(scheduler: Scheduler, steps: dict[int, int]) -> list[int]:
    """Whose turn it is, by id, until all have run; each cohort needs as many turns as its first request's ``steps``."""
    scheduler.admit()
    order = []
    while (cohort := scheduler.next_cohort()) is not None:
        first = cohort.requests[0].id
        order.append(first)
        steps[first] -= 1
        if steps[first]:
            cohort.joining = cast("Joining", object())
            scheduler.postpone(cohort)
        else:
            scheduler.run(cohort)
    return order


def test_a_cohort_with_a_shared_prefix_waits_for_the_first() -> None:
    scheduler = Scheduler(max_slots=10, max_waiting=100, chunk=8)
    first, second, third = (asking(number) for number in range(3))
    other = request("b", 100)
    for one in (first, second, other, third):
        scheduler.add(one)
    a, b, c, d = first.id, second.id, third.id, other.id
    assert turns(scheduler, {a: 3, b: 1, c: 1, d: 3}) == [a, d, a, d, a, b, c, d]


@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        (asking(0, scope="b"), asking(1)),
        (asking(0, scope=None), asking(1, scope=None)),
        (asking(0, length=101), asking(1)),  # to wait for so much takes longer than to compute what is shared
        (asking(0, begin=16), asking(1, begin=16)),
    ],
    ids=["another tenant", "no namespace", "mostly its own", "less than a block"],
)
def test_a_cohort_waits_only_for_a_prefix_that_it_gains_from(leader: EngineRequest, follower: EngineRequest) -> None:
    scheduler = Scheduler(max_slots=10, max_waiting=100, chunk=8)
    scheduler.add(leader)
    scheduler.add(follower)
    assert turns(scheduler, {leader.id: 2, follower.id: 2}) == [leader.id, follower.id] * 2


def test_a_cohort_that_others_wait_for_may_be_cancelled() -> None:
    scheduler = Scheduler(max_slots=10, max_waiting=100, chunk=8)
    first, second = asking(0), asking(1)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.admit()
    cohort = scheduler.next_cohort()
    assert cohort is not None
    cohort.joining = cast("Joining", object())
    scheduler.postpone(cohort)
    assert scheduler.next_cohort() is cohort
    scheduler.postpone(cohort)
    scheduler.discard({first.id})
    assert turns(scheduler, {second.id: 1}) == [second.id]


def test_a_request_joins_only_if_all_fit_fully_grown() -> None:
    memory = KvMemory(shared=0, own=1)
    budget = KvBudget(memory, memory.needed(2, 4, 128) + memory.needed(1, 2, 64))
    scheduler = Scheduler(max_slots=8, max_waiting=100, budget=budget)
    guided = [request("a", 64, guided=True) for _ in range(3)]
    small = request("a")
    for one in [*guided, small]:
        scheduler.add(one)
    assert scheduler.kv_usage == 0
    assert admit(scheduler) == guided[:1]
    assert scheduler.kv_usage == memory.needed(1, 2, 128) / budget.limit
    assert admit(scheduler) == guided[1:2]  # while the first was joining, its prompt had a cache of its own
    assert admit(scheduler) == []
    assert scheduler.waiting == 2  # the small one would fit and does not overtake
    scheduler.retire({guided[0].id})
    assert admit(scheduler) == guided[2:3]
    assert admit(scheduler) == []
    scheduler.retire({guided[1].id})
    assert admit(scheduler) == [small]


def test_a_lone_request_always_joins() -> None:
    scheduler = Scheduler(max_slots=8, max_waiting=100, budget=KvBudget(KvMemory(1, 1), limit=1))
    one, other = request("a", 200, guided=True), request("a")
    scheduler.add(one)
    scheduler.add(other)
    assert admit(scheduler) == [one]
    scheduler.retire({one.id})
    assert admit(scheduler) == [other]


@given(
    st.lists(
        st.sampled_from(["add a 1", "add b 3", "add c 9", "admit", "turn", "run", "retire", "cancel"]), max_size=60
    )
)
def test_no_request_is_lost_doubled_or_starved(moves: list[str]) -> None:
    scheduler = Scheduler(max_slots=3, max_waiting=1000, chunk=4)
    waiting: list[EngineRequest] = []
    joining: list[EngineRequest] = []
    running: list[EngineRequest] = []
    for move in moves:
        match move.split():
            case ["add", tenant, prompt]:
                waiting.append(request(tenant, int(prompt)))
                scheduler.add(waiting[-1])
            case ["admit"]:
                scheduler.admit()
                admitted = [one for one in waiting if one not in _still_waiting(scheduler)]
                assert len(admitted) == min(3 - len(running) - len(joining), len(waiting))
                waiting = [one for one in waiting if one not in admitted]
                joining += admitted
            case ["turn" | "run" as what] if joining:
                cohort = scheduler.next_cohort()
                assert cohort is not None
                assert len(cohort.requests) == 1 or sum(one.sequence.prompt_tokens for one in cohort.requests) <= 4
                if what == "turn":
                    scheduler.postpone(cohort)
                else:
                    scheduler.run(cohort)
                    joining = [one for one in joining if one not in cohort.requests]
                    running += cohort.requests
            case ["retire"] if running:
                scheduler.retire({running.pop(0).id})
            case ["cancel"] if waiting or joining:
                scheduler.discard({(waiting or joining).pop().id})
        assert scheduler.running == running
        assert (scheduler.waiting, scheduler.joining) == (len(waiting), len(joining))
        for tenant in "abc":
            mine = [one for one in waiting if one.tenant == tenant]
            assert [one for one in _still_waiting(scheduler) if one.tenant == tenant] == mine
    assert sorted(one.id for one in scheduler.clear()) == sorted(one.id for one in [*waiting, *joining, *running])


def test_a_free_slot_goes_to_the_tenant_that_holds_the_fewest() -> None:
    scheduler = Scheduler(max_slots=4, max_waiting=100)
    for one in [request("greedy") for _ in range(10)]:
        scheduler.add(one)
    scheduler.admit()
    while cohort := scheduler.next_cohort():
        scheduler.run(cohort)
    assert {one.tenant for one in scheduler.running} == {"greedy"}
    late = [request("late") for _ in range(3)]
    for one in late:
        scheduler.add(one)
    for leaving in range(2):
        scheduler.retire({scheduler.running[0].id})
        scheduler.admit()
        while cohort := scheduler.next_cohort():
            scheduler.run(cohort)
        assert late[leaving] in scheduler.running  # until both hold two
    scheduler.retire({late[0].id})
    scheduler.admit()
    assert scheduler.joining == 1
    assert late[2] not in _still_waiting(scheduler)


def test_no_tenant_fills_the_queue() -> None:
    scheduler = Scheduler(max_slots=0, max_waiting=64)
    places = dict.fromkeys("abcdef", 0)
    for tenant in places:
        while scheduler.room_for({tenant: 1}):
            scheduler.add(request(tenant))
            places[tenant] += 1
    assert places == {"a": 32, "b": 16, "c": 8, "d": 4, "e": 2, "f": 1}
    together = Scheduler(max_slots=0, max_waiting=64)
    shares = dict.fromkeys("abc", 0)
    while some := [tenant for tenant in shares if together.room_for({tenant: 1})]:
        together.add(request(some[0]))
        shares[some[0]] += 1
        shares = dict(sorted(shares.items(), key=lambda share: share[1]))
    assert set(shares.values()) == {16}


def _still_waiting(scheduler: Scheduler) -> list[EngineRequest]:
    return [one for queue in scheduler._waiting.values() for one in queue]
