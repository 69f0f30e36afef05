"""Everything at once: what a busy engine says is what each request gets alone from the reference back end."""

from __future__ import annotations

import queue
import random

import pytest
from peft import PeftModel

from armature.contracts.specs.arm import AdapterShape
from armature.inference.batch import GuidedBatch, Sampled
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel
from armature.inference.prefix_cache import BLOCK_TOKENS, PrefixCache
from armature.inference.request import Guide, GuidedRequest
from armature_decoder.engine.engine import Engine
from armature_decoder.engine.request import EngineRequest, Event
from armature_decoder.engine.scheduler import KvBudget, Scheduler
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.slow

NAMES = ("empathy", "truthfulness", "helpfulness")
PROFILES = ("all", "upper_half")
TENANTS = ("a", "b", "c")
REQUESTS, CANCELLED = 200, 20
WAIT = 60


def adapted(layers: str) -> PeftModel:
    """One base under two profiles."""
    return add_random_adapter(
        tiny_llama(seed=4), list(NAMES), PROFILES.index(layers), shape=AdapterShape(layers=layers)
    )


def guided_model(model: PeftModel | LeanModel) -> GuidedModel:
    return GuidedModel(model, frozenset({1}), 259, NAMES, "reference")


def random_requests() -> list[tuple[str, GuidedRequest]]:
    """Tenant and request, with a few preferences, a few system prompts, and everything else of its own."""
    draw = random.Random(7)
    systems = [tuple(draw.randrange(3, 259) for _ in range(length)) for length in (0, 5, BLOCK_TOKENS, 80)]
    made = []
    for seed in range(REQUESTS):
        tenant = draw.choice(TENANTS)
        preference = draw.choice([(1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.2, 0.3, 0.5)])
        guide = Guide(preference, draw.choice([0.0, 0.5, 4.0]), draw.choice([None, 0.5, 5.0]), strict=seed % 17 == 0)
        user = tuple(draw.randrange(3, 259) for _ in range(draw.randrange(1, 40)))
        request = GuidedRequest(
            draw.choice(systems) + user,
            max_tokens=draw.randrange(1, 12),
            seed=seed,
            guide=guide if draw.random() < 0.7 else None,
            temperature=draw.choice([0.0, 0.7, 1.5]),
            top_p=draw.choice([0.8, 1.0]),
            top_k=draw.choice([0, 40]),
            namespace=tenant,
        )
        made.append((tenant, request))
    return made


class Service:
    """An engine as the decoder starts it, in a tight place: few slots, small chunks, little memory."""

    def __init__(self, layers: str) -> None:
        model = guided_model(LeanModel(adapted(layers)))
        memory = model.kv_memory
        budget = KvBudget(memory, memory.needed(5, 10, 128) + memory.needed(2, 4, 128))
        prefixes = PrefixCache(60 * BLOCK_TOKENS * (memory.shared + memory.own), self._count)
        self.asked, self.found = 0, 0
        self.engine = Engine(GuidedBatch(model, prefixes), Scheduler(6, 1000, chunk=24, budget=budget), layers)

    def _count(self, asked: int, found: int) -> None:
        self.asked += asked
        self.found += found


@pytest.fixture(scope="module")
def alone() -> dict[str, list[list[int]]]:
    """What each request gets alone from transformers, by profile."""
    models = {layers: guided_model(adapted(layers)) for layers in PROFILES}
    sequences = [request for _, request in random_requests()]
    return {
        layers: [generate_guided(models[layers], [one])[0] for one in sequences[number::2]]
        for number, layers in enumerate(PROFILES)
    }


def test_a_busy_engine_gives_the_tokens_of_each_request_alone(alone: dict[str, list[list[int]]]) -> None:
    services = {layers: Service(layers) for layers in PROFILES}
    heard: list[queue.Queue[Event]] = [queue.Queue() for _ in range(REQUESTS)]
    draw = random.Random(1)
    for number, (tenant, request) in enumerate(random_requests()):
        engine = services[PROFILES[number % 2]].engine
        engine.submit([EngineRequest(tenant, request, heard[number].put)])
        if draw.random() < CANCELLED / REQUESTS:  # a client that disconnects
            gone = EngineRequest(tenant, GuidedRequest(request.prompt, 200, guide=request.guide), lambda event: None)
            engine.submit([gone])
            if draw.random() < 0.5:
                heard[number].get(timeout=WAIT)
                heard[number] = _again(engine, tenant, request)
            engine.cancel([gone])
    answers = [_answer(one) for one in heard]
    for number, layers in enumerate(PROFILES):
        assert answers[number::2] == alone[layers]
        service = services[layers]
        service.engine.stop()
        assert 0.1 < service.found / service.asked < 1


def _again(engine: Engine, tenant: str, request: GuidedRequest) -> queue.Queue[Event]:
    events: queue.Queue[Event] = queue.Queue()
    engine.submit([EngineRequest(tenant, request, events.put)])
    return events


def _answer(events: queue.Queue[Event]) -> list[int]:
    tokens = []
    while True:
        event = events.get(timeout=WAIT)
        assert isinstance(event, Sampled), event
        if event.finish_reason != "stop":
            tokens.append(event.token)
        if event.finish_reason:
            return tokens
