"""Decoding by CUDA graphs: the same logits, nothing recorded twice, and memory that comes back."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from armature.contracts.preferences import ATTRIBUTES
from armature.contracts.specs.arm import AdapterShape
from armature.inference.lean.cuda_graphs import CudaGraphs
from armature.inference.lean.dynamic_step import DynamicStep
from armature.inference.lean.graph_cache import Compute
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.lean.static_step import StaticStep
from armature.inference.model import GuidedModel
from armature.inference.prefix_cache import PrefixCache
from armature.inference.request import Guide, GuidedRequest
from benchmarks.shapes import adapt, random_model
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.recorded_ops import RecordedOps, repeat
from tests.support.row_workloads import assert_alike, play
from tests.support.rows import TwinRows, join_rows
from tests.support.tiny_models import tiny_family

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = torch.device("cuda:0")
NAMES = ("empathy", "truthfulness", "helpfulness")
VERTEX, MIXED = [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]
GIB = 1 << 30
SEGMENTS = 32 << 20
"""What the allocator may keep for itself."""
STEPS = {
    "rows as they are": DynamicStep,
    "padded": partial(StaticStep, capture=repeat),
    "recorded": lambda *of: StaticStep(*of, capture=RecordedOps()),
}


class CountedGraphs(CudaGraphs):
    """Knows how many there have been."""

    def __init__(self) -> None:
        super().__init__(DEVICE)
        self.captures = 0

    def __call__(self, compute: Compute) -> Compute:
        """Capture one more."""
        self.captures += 1
        return super().__call__(compute)


def model(layers: str = "upper_half", dtype: torch.dtype = torch.float32) -> LeanModel:
    """The same weights at every call."""
    shape = AdapterShape.model_validate({"layers": layers, "targets": "attention_and_mlp"})
    return LeanModel(add_random_adapter(tiny_family("qwen2").to(dtype), NAMES, size=0.1, shape=shape).to(DEVICE))


def large_model() -> LeanModel:
    """Products that cuBLAS wants a workspace for."""
    return LeanModel(adapt(random_model("125m", str(DEVICE), torch.bfloat16), "upper_half", "attention"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layers", ["all", "upper_half"])
@pytest.mark.parametrize("step", STEPS)
def test_graphs_give_the_logits_of_steps_without(step: str, layers: str, seed: int) -> None:
    shared = model(layers)
    graphs = TwinRows(LeanRunner(shared, len(NAMES), 250, PrefixCache(1 << 24)))
    plain = TwinRows(LeanRunner(shared, len(NAMES), 250, PrefixCache(1 << 24), STEPS[step]))
    assert assert_alike(play(graphs, seed, 30, str(DEVICE)), play(plain, seed, 30, str(DEVICE)), 1e-4) > 60


def test_bfloat16_stays_close() -> None:
    shared = model(dtype=torch.bfloat16)
    graphs, plain = (TwinRows(LeanRunner(shared, len(NAMES), 250, start=start)) for start in (None, DynamicStep))
    assert_alike(play(graphs, 5, 12, str(DEVICE)), play(plain, 5, 12, str(DEVICE)), 0.05)


def test_requests_and_preferences_come_and_go_without_a_new_capture() -> None:
    graphs = CountedGraphs()
    rows = TwinRows(LeanRunner(model(), len(NAMES), start=partial(StaticStep, capture=graphs)))
    for preferences in ([VERTEX, None], [MIXED, None], [None, VERTEX], [MIXED, None]):
        join_rows(rows, [[9, 10], [11, 12, 13]], preferences)
        for _ in range(20):
            rows.step(torch.tensor([22, 23], device=DEVICE))
        assert graphs.captures == 1
        rows.keep([])


def test_evicted_graphs_leave_the_others_intact() -> None:
    shared = large_model()
    runner = LeanRunner(shared, len(ATTRIBUTES))
    runner._step._graphs._limit = 2  # type: ignore[attr-defined]
    few, plain = TwinRows(runner), TwinRows(LeanRunner(shared, len(ATTRIBUTES), start=DynamicStep))
    weights = [[1.0, 0.0, 0.0, 0.0, 0.0], None, [0.2] * 5, None, None]
    for each in (few, plain):
        join_rows(each, [[5, 6], [7], [8, 9, 10], [11], [12]], weights)
    for slots in ([0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 2], [0]) * 2:
        for each in (few, plain):
            each.keep([])
            join_rows(each, [[5 + slot] for slot in slots], [weights[slot] for slot in slots])
        for token in range(20, 28):
            ours, theirs = (each.step(torch.full((len(slots),), token, device=DEVICE)) for each in (few, plain))
            torch.testing.assert_close(ours.arm, theirs.arm, atol=0.05, rtol=0.05)


def test_threads_capture_beside_each_other() -> None:
    """As the decoder's bundles do, each with a thread and rows of its own."""
    failures = list[BaseException]()

    def run(seed: int) -> None:
        shared = model()
        ours, theirs = (TwinRows(LeanRunner(shared, len(NAMES), start=start)) for start in (None, DynamicStep))
        try:
            assert_alike(play(ours, seed, 30, str(DEVICE)), play(theirs, seed, 30, str(DEVICE)), 1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_capture_that_fails_leaves_the_thread_where_it_was() -> None:
    buffer, graphs = torch.ones(2, device=DEVICE), CudaGraphs(DEVICE)

    def fail() -> torch.Tensor:
        buffer.mul_(2)
        raise ValueError("on its way")

    with pytest.raises(ValueError, match="on its way"):
        graphs(fail)
    assert torch.cuda.current_stream(DEVICE) == torch.cuda.default_stream(DEVICE)
    replay = graphs(lambda: buffer + 1)
    buffer.fill_(5)
    assert replay().tolist() == [6, 6]


def decode(of: LeanModel, count: int = 4) -> list[list[int]]:
    """Greedy answers, half of them guided, each under a preference of its own."""
    guided = GuidedModel(of, frozenset({-1}), 32_000, ATTRIBUTES, "reference")
    requests = [
        GuidedRequest(
            prompt=tuple(range(100 + index, 132 + index)),
            max_tokens=24,
            temperature=0.0,
            guide=Guide(tuple(weight / 10 for weight in (index, 10 - index, 0, 0, 0)), 1.0) if index % 2 else None,
        )
        for index in range(count)
    ]
    return generate_guided(guided, requests)


def held() -> tuple[int, int]:
    torch.cuda.synchronize(DEVICE)
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(DEVICE), torch.cuda.memory_reserved(DEVICE)


def test_memory_is_back_after_a_model_and_its_graphs_are_dropped() -> None:
    decode(large_model())  # libraries keep what they need, once
    allocated, reserved = held()
    for _ in range(3):
        decode(large_model())
        now = held()
        assert now[0] == allocated
        assert now[1] <= reserved + SEGMENTS


def test_a_model_goes_on_when_another_one_s_graphs_are_gone() -> None:
    stays = TwinRows(LeanRunner(shared := large_model(), len(ATTRIBUTES)))
    plain = TwinRows(LeanRunner(shared, len(ATTRIBUTES), start=DynamicStep))
    for each in (stays, plain):
        join_rows(each, [[5, 6, 7]], [[0.2] * 5])
    for turn in range(12):
        if turn % 4 == 2:
            decode(large_model())
            held()
        ours, theirs = (each.step(torch.tensor([40 + turn], device=DEVICE)) for each in (stays, plain))
        torch.testing.assert_close(ours.arm, theirs.arm, atol=0.05, rtol=0.05)


def test_seven_billion_weights_are_held_once_and_decode_guided() -> None:
    free, _ = torch.cuda.mem_get_info(DEVICE)
    if free < 24 * GIB:
        pytest.skip(f"needs 24 GiB of free memory on the device, there are {free / GIB:.1f}")
    before, _ = held()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    base = random_model("7b", str(DEVICE), torch.bfloat16)
    weights = torch.bfloat16.itemsize * base.num_parameters()
    adapted = adapt(base, "upper_half", "attention_and_mlp")
    del base
    runnable = LeanModel(adapted)  # layer by layer, if there is no other reference
    del adapted
    answers = decode(runnable, count=6)
    assert [len(answer) for answer in answers] == [24] * 6
    assert answers == decode(runnable, count=6)
    assert torch.cuda.max_memory_allocated(DEVICE) - before < 1.25 * weights
    del runnable
    assert held()[0] - before < weights / 100  # libraries keep a workspace
