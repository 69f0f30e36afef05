"""The step that a GPU records: on a processor its operations are recorded and repeated, as a CUDA graph does.

That its logits are right is what ``test_backends.py`` shows, where it is one of the back ends.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from armature.contracts.specs.arm import AdapterShape
from armature.inference.lean import runner as lean_runner
from armature.inference.lean.graph_cache import Capture, Compute, GraphCache
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.lean.static_step import StaticStep
from armature.inference.model import GuidedModel
from armature.inference.prefix_cache import PrefixCache
from armature.inference.request import Guide, GuidedRequest, Instruction
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.recorded_ops import LooksInside, RecordedOps, repeat
from tests.support.row_workloads import assert_alike, play
from tests.support.rows import TwinLogits, TwinRows, join_rows
from tests.support.tiny_models import tiny_family

pytestmark = pytest.mark.slow

NAMES = ("empathy", "truthfulness", "helpfulness")
SHAPES = {
    "all": AdapterShape(layers="all"),
    "upper_half": AdapterShape(layers="upper_half", targets="attention_and_mlp"),
}
VERTEX, MIXED = [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]


def model(layers: str = "upper_half", dtype: torch.dtype = torch.float32) -> LeanModel:
    """The same weights at every call; the adapter is small enough not to amplify rounding over hundreds of tokens."""
    return LeanModel(add_random_adapter(tiny_family("qwen2").to(dtype), NAMES, size=0.1, shape=SHAPES[layers]))


def static(of: LeanModel, capture: Capture, prefixes: PrefixCache | None = None) -> TwinRows:
    return TwinRows(static_runner(of, capture, prefixes))


def static_runner(of: LeanModel, capture: Capture, prefixes: PrefixCache | None = None) -> LeanRunner:
    return LeanRunner(of, len(NAMES), 250, prefixes, partial(StaticStep, capture=capture))


def dynamic(of: LeanModel, prefixes: PrefixCache | None = None) -> TwinRows:
    return TwinRows(LeanRunner(of, len(NAMES), 250, prefixes))


def go_on(rows: TwinRows, turns: int) -> Iterator[TwinLogits]:
    """Steps of all requests."""
    return (rows.step(torch.tensor([30 + turn]).repeat(len(rows))) for turn in range(turns))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("capture", [lambda: repeat, RecordedOps], ids=["repeat", "recorded"])
@pytest.mark.parametrize("layers", SHAPES)
def test_padded_and_recorded_rows_give_the_same_logits(layers: str, capture: Callable[[], Capture], seed: int) -> None:
    """Through joins, leaves, mixed preferences, cached prefixes, prompts in pieces, and lengths that grow."""
    shared = model(layers)
    plain = dynamic(shared, PrefixCache(1 << 24))
    ours = static(shared, capture(), PrefixCache(1 << 24))
    assert assert_alike(play(ours, seed, 30), play(plain, seed, 30), 1e-5) > 60


def test_bfloat16_stays_close() -> None:
    shared = model(dtype=torch.bfloat16)
    plain, ours = dynamic(shared), static(shared, RecordedOps())
    assert_alike(play(ours, 5, 12), play(plain, 5, 12), 0.05)


def test_requests_and_preferences_come_and_go_without_a_new_recording() -> None:
    recorded = RecordedOps()
    rows = static(model(), recorded)
    join_rows(rows, [[5, 6, 7], [8]], [VERTEX, None])
    for _ in range(3):
        rows.step(torch.tensor([20, 21]))
    assert (recorded.captures, recorded.replays) == (1, 2)
    for preferences in ([MIXED, None], [None, MIXED], [VERTEX, None]):
        rows.keep([])
        join_rows(rows, [[9, 10], [11, 12, 13]], preferences)
        for _ in range(20):
            rows.step(torch.tensor([22, 23]))
    assert (recorded.captures, recorded.replays) == (1, 62)


def test_a_guide_makes_another_shape_of_equally_many_rows() -> None:
    """Three safe rows, or three and an ARM row: both are four."""
    recorded, shared = RecordedOps(), model()
    rows, plain = static(shared, recorded), dynamic(shared)
    for guide in (None, VERTEX, None, MIXED):
        for each in (rows, plain):
            each.keep([])
            join_rows(each, [[5], [6, 7], [8]], [None, guide, None])
        assert assert_alike(go_on(rows, 4), go_on(plain, 4), 1e-5) == 4
    assert recorded.captures == 2


def test_a_wider_cache_is_not_attended_to_in_full() -> None:
    """A short request in a cache that a long one has left, past the columns of its first recording."""
    recorded = RecordedOps()
    shared = model()
    rows, plain = static(shared, recorded), dynamic(shared)
    for each in (rows, plain):
        join_rows(each, [[7] * 600], [VERTEX])
        each.keep([])
        join_rows(each, [[8] * 250], [MIXED])
    assert assert_alike(go_on(rows, 12), go_on(plain, 12), 1e-5) == 12
    assert recorded.captures == 2  # 256 columns, then 512 of the 640 that there are


def test_a_recording_is_dropped_when_buffers_move() -> None:
    recorded = RecordedOps()
    shared = model()
    rows, plain = static(shared, recorded), dynamic(shared)
    for each in (rows, plain):
        join_rows(each, [[5, 6]], [VERTEX])
    assert assert_alike(go_on(rows, 70), go_on(plain, 70), 1e-5) == 70  # past the 64 columns that are reserved first
    assert recorded.captures == 2


def test_a_recording_is_dropped_when_its_inputs_move() -> None:
    """A join that failed has left room for more rows than have ever been."""
    shared = model()
    runner, plain = static_runner(shared, RecordedOps()), dynamic(shared)
    rows = TwinRows(runner)
    runner._caches.reserve(8, 8, 64)
    for preferences, kept in (([VERTEX], [0]), ([None, MIXED], [0, 1, 2]), ([MIXED], [0])):
        for each in (rows, plain):
            join_rows(each, [[5, 6]] * len(preferences), preferences)
            each.keep(kept)
        assert assert_alike(go_on(rows, 4), go_on(plain, 4), 1e-5) == 4


def request(seed: int) -> GuidedRequest:
    """With an ARM or without, with an instruction or without, drawn or greedy."""
    prompt = tuple(3 + (7 * seed + place) % 250 for place in range(1 + seed % 9))
    told = seed % 5 == 2
    return GuidedRequest(
        prompt,
        max_tokens=3 + seed % 11,
        seed=seed,
        guide=Guide((0.2, 0.3, 0.5) if seed % 2 else (0.0, 1.0, 0.0), 2.0, 5.0) if seed % 3 else None,
        temperature=[0.0, 0.9][seed % 4 > 0],
        instruction=Instruction(2.0, 0.05, 0.2) if told else None,
        instructed_prompt=(40, 41, 42, *prompt) if told else (),
    )


def test_the_device_decides_and_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    guided = GuidedModel(model(), frozenset({-1}), 250, NAMES, "reference")
    requests = [request(seed) for seed in range(24)]
    expected = generate_guided(guided, requests, max_slots=7)
    recorded = RecordedOps()
    monkeypatch.setitem(lean_runner.STEPS, "cpu", partial(StaticStep, capture=recorded))
    assert generate_guided(guided, requests, max_slots=7) == expected
    assert recorded.captures > 2
    assert recorded.replays > 2 * recorded.captures


def test_memory_is_back_as_soon_as_rows_are_dropped() -> None:
    gc.disable()  # as it must be without it: on a GPU the next model waits for this memory
    try:
        runner = static_runner(model(), RecordedOps())
        rows = TwinRows(runner)
        join_rows(rows, [[5, 6]], [VERTEX])
        for _ in range(3):
            rows.step(torch.tensor([7]))
        buffer = weakref.ref(runner._caches.upper._buffers[0])
        weights = weakref.ref(runner._model)
        del rows, runner
        assert buffer() is None
        assert weights() is None
    finally:
        gc.enable()


def counting(log: list[str], name: str) -> Compute:
    return lambda: log.append(name) or torch.zeros(0)


def test_a_shape_is_recorded_when_it_comes_again_and_the_oldest_goes() -> None:
    log: list[str] = []

    def capture(compute: Compute) -> Compute:
        log.append("capture")
        return compute

    replays = GraphCache(capture, limit=2)
    for shape in (1, 1, 1, 2, 1, 3, 2):
        replays.run(shape, counting(log, str(shape)))
    assert log == ["1", "capture", "1", "1", "2", "1", "3", "2"]  # 2 was forgotten for 3
    assert len(replays) == 2
    replays.clear()
    replays.run(3, counting(log, "3"))
    assert log[-2:] == ["2", "3"]


def test_a_recording_that_fails_is_tried_again() -> None:
    failures = iter([True, False])

    def capture(compute: Compute) -> Compute:
        if next(failures):
            raise torch.OutOfMemoryError("no room for a graph")
        return compute

    replays, log = GraphCache(capture), list[str]()
    replays.run(1, counting(log, "1"))
    with pytest.raises(torch.OutOfMemoryError):
        replays.run(1, counting(log, "1"))
    replays.run(1, counting(log, "1"))
    assert log == ["1", "1"]


LOOKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a number": lambda x: x * float(x[0]),
    "a condition": lambda x: x if x.sum() > 0 else -x,
    "a mask": lambda x: x[x > 0],
    "places": lambda x: x.nonzero(),
    "numbers of the host": lambda x: x + torch.tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_the_recorder_refuses_what_a_graph_can_not_hold(kind: str) -> None:
    with pytest.raises(LooksInside):
        RecordedOps()(lambda: LOOKS[kind](torch.ones(2)))


def test_the_recorder_repeats_on_the_same_memory() -> None:
    """What was a number in Python stays what it was; what is in a buffer is read anew; a new buffer is not seen."""
    held = {"buffer": torch.ones(2), "number": 3}

    def compute() -> torch.Tensor:
        total: torch.Tensor = held["buffer"].add_(1) * held["number"]
        return total

    replay = RecordedOps()(compute)
    assert held["buffer"].tolist() == [1, 1]
    held["number"] = 100
    assert replay().tolist() == [6, 6]
    assert replay().tolist() == [9, 9]
    held["buffer"] = torch.zeros(2)
    assert replay().tolist() == [12, 12]
