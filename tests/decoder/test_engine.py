"""The engine thread: joins, leaves, cancellation, failures, on a real tiny model."""

from __future__ import annotations

import dataclasses
import math
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from armature.errors import NonFiniteLogits, RateLimited, Unavailable
from armature.inference.batch import GuidedBatch, Joining, Sampled
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel
from armature.inference.prefix_cache import BLOCK_TOKENS, PrefixCache
from armature.inference.request import Guide, GuidedRequest
from armature_decoder.engine.engine import Engine
from armature_decoder.engine.request import EngineRequest, Event, Failed
from armature_decoder.engine.scheduler import KvBudget, Scheduler
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.tiny_models import tiny_family, tiny_llama

ATTRIBUTES = ("empathy", "helpfulness")
WAIT = 20


@pytest.fixture(scope="module")
def model() -> GuidedModel:
    adapted = add_random_adapter(tiny_llama(seed=2), list(ATTRIBUTES))
    return GuidedModel(adapted, frozenset({-1}), 259, ATTRIBUTES, "reference")


class Listener:
    """One request and what it hears."""

    def __init__(self, tokens: int = 8, seed: int = 0, tenant: str = "a", prompt: tuple[int, ...] = (5, 6)) -> None:
        guide = Guide((seed % 3 / 2, 1 - seed % 3 / 2), 2.0, 4.0) if seed % 2 else None
        self.events: queue.Queue[Event] = queue.Queue()
        self.request = EngineRequest(tenant, GuidedRequest(prompt, tokens, seed, guide), self.events.put)

    def next(self) -> Event:
        return self.events.get(timeout=WAIT)

    def all(self) -> list[Event]:
        events = [self.next()]
        while isinstance(events[-1], Sampled) and events[-1].finish_reason is None:
            events.append(self.next())
        return events

    def tokens(self) -> list[int]:
        events = self.all()
        assert all(isinstance(event, Sampled) for event in events), events
        return [event.token for event in events if isinstance(event, Sampled)]


class FaultyBatch(GuidedBatch):
    """A real batch that fails where it is told to."""

    poisoned_prompt: tuple[int, ...] | None = None
    fail_next_step = False
    fail_next_evict = False
    fail_clear = False

    def begin(self, requests: Sequence[GuidedRequest]) -> Joining:
        if any(tuple(request.prompt) == self.poisoned_prompt for request in requests):
            raise MemoryError("too long")
        return super().begin(requests)

    def step(self) -> list[Sampled]:
        if self.fail_next_step:
            self.fail_next_step = False
            raise RuntimeError("device fault")
        return super().step()

    def evict(self, slots: Sequence[int]) -> None:
        if self.fail_next_evict:
            self.fail_next_evict = False
            raise MemoryError("no room for a copy")
        super().evict(slots)

    def clear(self) -> None:
        if self.fail_clear:
            raise RuntimeError("device lost")
        super().clear()


@pytest.fixture
def batch(model: GuidedModel) -> FaultyBatch:
    return FaultyBatch(model)


@pytest.fixture
def engine(batch: FaultyBatch) -> Iterator[Engine]:
    engine = Engine(batch, Scheduler(max_slots=4, max_waiting=64), "test")
    yield engine
    engine.stop()


def test_more_requests_than_slots_get_the_tokens_they_get_alone(engine: Engine, model: GuidedModel) -> None:
    listeners = [Listener(tokens=2 + seed % 5, seed=seed, tenant="ab"[seed % 2]) for seed in range(12)]
    alone = [generate_guided(model, [listener.request.sequence])[0] for listener in listeners]
    for listener in listeners:
        engine.submit([listener.request])
    assert [listener.tokens() for listener in listeners] == alone
    assert engine.running == engine.pending == 0


def test_cancelling_stops_within_a_token_and_frees_the_slot(engine: Engine, batch: FaultyBatch) -> None:
    endless, other = Listener(tokens=100_000), Listener(tokens=40, seed=1)
    engine.submit([endless.request, other.request])
    endless.next()
    engine.cancel([endless.request])
    other_tokens = len(other.tokens())
    assert other_tokens == 40
    heard = endless.events.qsize()
    assert heard < 40  # it stopped while the other went on
    engine.submit([(after := Listener(tokens=3)).request])
    assert len(after.tokens()) == 3
    assert endless.events.qsize() == heard
    assert len(batch) == 0


@pytest.mark.bad_input(58)
def test_cancelling_again_or_too_late_is_harmless(engine: Engine) -> None:
    done, running, waiting = Listener(tokens=2), Listener(tokens=100_000, seed=1), Listener(seed=3)
    engine.submit([done.request])
    assert len(done.tokens()) == 2
    engine.submit([running.request])
    running.next()
    for _ in range(3):
        engine.cancel([done.request, running.request])
    engine.submit([waiting.request])
    assert len(waiting.tokens()) == 8
    assert engine.running == engine.pending == 0


def test_a_request_that_can_not_join_fails_alone(engine: Engine, batch: FaultyBatch, model: GuidedModel) -> None:
    batch.poisoned_prompt = (66,)
    running, good, bad, fine = Listener(tokens=60), Listener(seed=1), Listener(prompt=(66,)), Listener(seed=3)
    alone = [generate_guided(model, [listener.request.sequence])[0] for listener in (good, fine)]
    engine.submit([running.request])
    running.next()
    engine.submit([good.request, bad.request, fine.request])
    assert isinstance(bad.next(), Failed)
    assert [good.tokens(), fine.tokens()] == alone
    assert len(running.tokens()) == 59


def test_a_failing_step_fails_the_running_requests_only(engine: Engine, batch: FaultyBatch) -> None:
    running = [Listener(tokens=100_000), Listener(tokens=100_000, seed=1)]
    engine.submit([listener.request for listener in running])
    for listener in running:
        listener.next()
    batch.fail_next_step = True
    for listener in running:
        last = listener.all()[-1]
        assert isinstance(last, Failed)
        assert last.error.status == 500
        assert "device fault" not in last.error.message
    engine.submit([(after := Listener()).request])
    assert len(after.tokens()) == 8


@pytest.mark.parametrize("leave", ["cancelled", "finished"])
def test_a_failing_eviction_fails_the_running_requests_only(engine: Engine, batch: FaultyBatch, leave: str) -> None:
    running, leaving = Listener(tokens=100_000), Listener(tokens=100_000 if leave == "cancelled" else 200, seed=1)
    engine.submit([running.request, leaving.request])
    running.next()
    batch.fail_next_evict = True
    if leave == "cancelled":
        engine.cancel([leaving.request])
    else:
        assert len(leaving.tokens()) == 200
    assert isinstance(running.all()[-1], Failed)
    engine.submit([(after := Listener()).request])
    assert len(after.tokens()) == 8


def test_an_engine_whose_batch_can_not_be_emptied_fails_all_requests_at_once(
    engine: Engine, batch: FaultyBatch
) -> None:
    running = [Listener(tokens=100_000, seed=seed) for seed in range(4)]
    engine.submit([listener.request for listener in running])
    for listener in running:
        listener.next()
    waiting = Listener(tenant="b")
    engine.submit([waiting.request])
    batch.fail_clear = batch.fail_next_step = True
    for listener in running:
        last = listener.all()[-1]
        assert isinstance(last, Failed)
        assert last.error.status == 500
    last = waiting.next()
    assert isinstance(last, Failed)
    assert last.error.retryable
    assert engine.has_failed
    with pytest.raises(Unavailable, match="has failed"):
        engine.submit([Listener().request])


def test_an_engine_that_is_stopped_has_not_failed(engine: Engine) -> None:
    engine.stop()
    assert not engine.has_failed


@pytest.mark.parametrize("run", [lambda model: model, LeanModel], ids=["hf", "lean"])
def test_a_request_that_overflows_the_base_fails_alone(run: Callable[..., Any]) -> None:
    base = tiny_family("llama", tie_word_embeddings=False)
    base.get_input_embeddings().weight.data[200] = math.inf
    model = GuidedModel(run(add_random_adapter(base, list(ATTRIBUTES))), frozenset({-1}), 259, ATTRIBUTES, "reference")
    others = [Listener(seed=seed, tenant="b") for seed in range(4)]
    at_once, later, scored = Listener(prompt=(5, 200)), Listener(seed=1), Listener(prompt=(200, 5, 6))
    for listener, changes in (
        (later, {"logit_bias": ((200, 100.0),), "guide": None}),
        (scored, {"score_prompt": True, "top_logprobs": 0}),
    ):
        listener.request.sequence = dataclasses.replace(listener.request.sequence, **changes)
    alone = [generate_guided(model, [listener.request.sequence])[0] for listener in others]
    engine = Engine(GuidedBatch(model), Scheduler(max_slots=4, max_waiting=16), "overflowing")
    for listener in (others[0], at_once, others[1], later, others[2], scored, others[3]):
        engine.submit([listener.request])
    assert [listener.tokens() for listener in others] == alone
    heard = [listener.all() for listener in (at_once, later, scored)]
    engine.stop()
    assert [len(events) for events in heard] == [1, 2, 1]
    for events in heard:
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, NonFiniteLogits)
    for listener in (at_once, later, scored):
        with pytest.raises(NonFiniteLogits):
            generate_guided(model, [listener.request.sequence])


def test_a_long_prompt_does_not_stall_the_others(model: GuidedModel) -> None:
    engine = Engine(GuidedBatch(model), Scheduler(max_slots=4, max_waiting=16, chunk=8), "chunks")
    heard: list[str] = []
    running, long, late = (
        Listener(tokens=200),
        Listener(tokens=3, seed=1, prompt=tuple(range(3, 123))),
        Listener(tokens=3, prompt=(9, 8)),
    )
    for name, listener in (("running", running), ("long", long), ("late", late)):
        listener.request = dataclasses.replace(listener.request, sink=_naming(name, heard, listener.events.put))
    alone = [generate_guided(model, [listener.request.sequence])[0] for listener in (long, late)]
    engine.submit([running.request])
    running.next()
    engine.submit([long.request])
    engine.submit([late.request])
    assert [long.tokens(), late.tokens()] == alone
    engine.stop()
    before_long = heard[: heard.index("long")]
    assert before_long.count("running") > 2 * 120 // 8  # a step for each chunk of both streams' prompts
    assert before_long.count("late") == 3


def test_key_value_memory_bounds_the_batch_and_starves_no_request(model: GuidedModel) -> None:
    memory = model.kv_memory
    budget = KvBudget(memory, memory.needed(2, 4, 64) + memory.needed(1, 2, 64))
    most = 0

    class Watched(GuidedBatch):
        def step(self) -> list[Sampled]:
            nonlocal most
            most = max(most, len(self))
            return super().step()

    engine = Engine(Watched(model), Scheduler(max_slots=8, max_waiting=16, budget=budget), "bytes")
    listeners = [Listener(tokens=6, seed=2 * index + 1) for index in range(6)]
    alone = [generate_guided(model, [listener.request.sequence])[0] for listener in listeners]
    engine.submit([listener.request for listener in listeners])
    assert [listener.tokens() for listener in listeners] == alone
    engine.stop()
    assert most == 2


@pytest.mark.parametrize("run", [lambda model: model, LeanModel], ids=["hf", "lean"])
def test_a_shared_prefix_is_prefilled_once(run: Callable[..., Any]) -> None:
    adapted = run(add_random_adapter(tiny_llama(seed=2), list(ATTRIBUTES)))
    model = GuidedModel(adapted, frozenset({-1}), 259, ATTRIBUTES, "reference")
    found: list[int] = []
    batch = GuidedBatch(model, PrefixCache(1 << 24, lambda asked, known: found.append(known)))
    system = tuple(range(3, 3 + 5 * BLOCK_TOKENS))
    requests = [
        GuidedRequest((*system, 20 + seed, 30), 4, seed, Guide((0.5, 0.5), 2.0), namespace="a") for seed in range(6)
    ]
    alone = [generate_guided(model, [dataclasses.replace(one, namespace=None)])[0] for one in requests]
    engine = Engine(batch, Scheduler(max_slots=8, max_waiting=64, chunk=64), "test")
    try:
        heard = [queue.Queue[Event]() for _ in requests]
        engine.submit([EngineRequest("a", one, events.put) for one, events in zip(requests, heard, strict=True)])
        for wanted, events in zip(alone, heard, strict=True):
            tokens = [events.get(timeout=WAIT) for _ in range(4)]
            assert [token.token for token in tokens if isinstance(token, Sampled)] == wanted
    finally:
        engine.stop()
    assert sum(found) == 2 * 5 * len(system)  # both streams of all but the first


def test_a_prompt_that_is_cancelled_half_way_leaves_nothing(model: GuidedModel) -> None:
    batch = GuidedBatch(model)
    engine = Engine(batch, Scheduler(max_slots=2, max_waiting=16, chunk=1), "cancelled")
    running, long = Listener(tokens=40), Listener(prompt=tuple(range(3, 240)))
    engine.submit([running.request])
    running.next()
    engine.submit([long.request])
    running.next()
    running.next()
    engine.cancel([long.request])
    assert len(running.tokens()) == 37
    engine.submit([(after := Listener(tokens=3)).request])
    assert len(after.tokens()) == 3
    assert long.events.empty()
    assert engine.pending == len(batch) == 0
    engine.stop()


def test_cancelling_during_a_shared_prefill_ends_one_request(model: GuidedModel) -> None:
    """Prompts that fit into a chunk together may still take several turns: side by side, each is as wide as all."""
    long, short = Listener(prompt=tuple(range(3, 53)), seed=1), Listener(tenant="b")
    pieces = 0

    class Watched(GuidedBatch):
        def advance(self, joining: Joining, tokens: int) -> int:
            nonlocal pieces
            pieces += 1
            engine.cancel([short.request])
            return super().advance(joining, tokens)

    batch = Watched(model)
    engine = Engine(batch, Scheduler(max_slots=4, max_waiting=16, chunk=104), "common")
    alone = generate_guided(model, [long.request.sequence])[0]
    engine.submit([long.request, short.request])
    assert long.tokens() == alone
    engine.stop()
    assert pieces > 1
    assert short.events.empty()
    assert len(batch) == 0


def _naming(name: str, heard: list[str], sink: Callable[[Event], None]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        heard.append(name)
        sink(event)

    return listen


def test_a_sink_that_raises_ends_its_own_request_only(engine: Engine) -> None:
    def sink(event: Event) -> None:
        raise RuntimeError("the loop is closed")

    deaf = dataclasses.replace(Listener(tokens=100_000).request, sink=sink)
    other = Listener()
    engine.submit([deaf, other.request])
    assert len(other.tokens()) == 8
    engine.submit([(after := Listener(tokens=2)).request])
    after.tokens()
    assert engine.running == 0


def test_a_full_queue_refuses_all_or_none(model: GuidedModel) -> None:
    engine = Engine(GuidedBatch(model), Scheduler(max_slots=1, max_waiting=2), "small")
    running, waiting = Listener(tokens=100_000), Listener()
    engine.submit([running.request])
    running.next()
    engine.submit([waiting.request])
    with pytest.raises(RateLimited):
        engine.submit([Listener().request, Listener().request])
    assert engine.pending == 1
    engine.stop()
    assert isinstance(running.all()[-1], Failed)
    assert isinstance(waiting.next(), Failed)
    with pytest.raises(Unavailable):
        engine.submit([Listener().request])


def test_the_share_of_every_tenant_counts_whichever_comes_first(model: GuidedModel) -> None:
    engine = Engine(GuidedBatch(model), Scheduler(max_slots=1, max_waiting=4), "shared")
    running = Listener(tokens=100_000)
    engine.submit([running.request])
    running.next()
    engine.submit([Listener().request, Listener().request])
    for tenants in ("ba", "ab"):
        with pytest.raises(RateLimited):
            engine.submit([Listener(tenant=tenant).request for tenant in tenants])
    engine.submit([Listener(tenant=tenant).request for tenant in "bb"])
    assert engine.pending == 4
    engine.stop()
