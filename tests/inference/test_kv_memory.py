"""The bytes counted are the bytes reserved, through joins and evictions."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from armature.contracts.specs.arm import AdapterShape
from armature.inference.kv_memory import KvMemory
from armature.inference.lean import attention
from armature.inference.lean.architecture import Architecture
from armature.inference.lean.dynamic_step import DynamicStep
from armature.inference.lean.kv_cache import KvCache
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.lean.static_step import StaticStep
from armature.inference.lean.step import StepFactory
from armature.inference.model import GuidedModel
from armature.inference.transformers.runner import TransformersRunner
from tests.support.adapters import add_random_adapter
from tests.support.recorded_ops import repeat
from tests.support.rows import TwinRows, join_rows
from tests.support.tiny_models import tiny_llama

NAMES = ("empathy", "helpfulness")


def reserved(runner: LeanRunner) -> int:
    return sum(buffer.nbytes for cache in (runner._caches.lower, runner._caches.upper) for buffer in cache._buffers)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start", [DynamicStep, partial(StaticStep, capture=repeat)], ids=["dynamic", "static"])
@pytest.mark.parametrize("layers", ["all", "upper_half"])
def test_the_buffers_never_exceed_the_largest_need_so_far(layers: str, start: StepFactory, dtype: torch.dtype) -> None:
    draw = random.Random(3)
    model = LeanModel(add_random_adapter(tiny_llama().to(dtype), list(NAMES), shape=AdapterShape(layers=layers)))
    memory, runner = model.kv_memory, LeanRunner(model, len(NAMES), start=start)
    rows = TwinRows(runner)
    live: list[tuple[int, int]] = []
    peak = 0

    def check() -> None:
        nonlocal peak
        streams, length = sum(two for two, _ in live), max((length for _, length in live), default=0)
        peak = max(peak, memory.needed(len(live), streams, length)) if live else 0
        assert reserved(runner) <= peak
        if live:
            assert reserved(runner) >= len(live) * length * memory.shared + streams * length * memory.own

    for _ in range(60):
        if live and draw.random() < 0.3:
            kept = sorted(draw.sample(range(len(live)), draw.randrange(len(live) + 1)))
            rows.keep(kept)
            live = [live[slot] for slot in kept]
        if live:
            rows.step(torch.full((len(live),), 5))
            live = [(streams, length + 1) for streams, length in live]
            check()
        if len(live) < 9 and draw.random() < 0.5:
            guided, length = draw.random() < 0.6, draw.randrange(1, 150)
            join_rows(rows, [[7] * length], [[0.5, 0.5] if guided else None])
            live.append((1 + guided, length))
            check()
    assert peak > 0


@pytest.mark.parametrize("at_once", [1, 300, 1 << 20])
@pytest.mark.parametrize("lengths", [(40, 40, 40), (3, 40, 17)])
def test_one_token_attends_the_same_in_pieces(
    lengths: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CONVERTED_NUMBERS", at_once)
    draw, rows, longest = torch.Generator().manual_seed(0), len(lengths), max(lengths)
    like = torch.zeros(0, dtype=torch.bfloat16)
    cache = KvCache(Architecture(heads=6, kv_heads=2, head_width=8, eps=1e-6, qk_norm=False), 0, 1, like)
    cache.reserve(rows, longest + 1)
    past = torch.randn(2, rows, 2, longest, 8, generator=draw).bfloat16()
    for row in range(rows):
        cache.write(row, slice(0, longest), past[None, :, row])
    queries = torch.randn(rows, 1, 6, 8, generator=draw)
    keys, values = torch.randn(2, rows, 1, 2, 8, generator=draw).bfloat16().float()
    seen = cache.extend(torch.tensor(lengths), min(lengths), longest)(0, queries, keys, values)
    for row, length in enumerate(lengths):
        known = [
            torch.cat([one[row, :, :length].float(), new[row].transpose(0, 1)], dim=1)[None]
            for one, new in zip(past, (keys, values), strict=True)
        ]
        expected = scaled_dot_product_attention(queries[row][None].transpose(1, 2), *known, enable_gqa=True)
        torch.testing.assert_close(seen[row], expected[0].transpose(0, 1), atol=1e-5, rtol=0)


def test_the_longest_that_fits_fits_and_one_run_more_does_not() -> None:
    memory = KvMemory(shared=100, own=300)
    for prompts, streams in ((1, 1), (1, 2), (2, 2), (2, 3)):
        for limit in (64 * 400, 10**6, 123_456_789):
            length = memory.longest(prompts, streams, limit)
            assert memory.needed(prompts, streams, length) <= limit < memory.needed(prompts, streams, length + 1)
    assert memory.longest(1, 1, 64 * 400 - 1) == memory.longest(1, 1, -1) == 0


def test_a_back_end_counts_what_its_layers_hold() -> None:
    def adapted(layers: str) -> torch.nn.Module:
        return add_random_adapter(tiny_llama(), list(NAMES), shape=AdapterShape(layers=layers))

    position = 2 * 2 * 8 * 4  # keys and values, two heads of width 8, float32
    config = tiny_llama().config
    for layers, shared in (("all", 0), ("upper_half", config.num_hidden_layers // 2)):
        lean = GuidedModel(LeanModel(adapted(layers)), frozenset(), 259, NAMES).kv_memory
        assert lean == KvMemory(shared * position, (config.num_hidden_layers - shared) * position)
    reference = GuidedModel(adapted("all"), frozenset(), 259, NAMES)
    runner = TransformersRunner(reference.model, len(NAMES))
    join_rows(TwinRows(runner), [[5] * 64], [[0.5, 0.5]])
    (group,) = runner._groups
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in group.kv.cache.layers)
    assert held == reference.kv_memory.needed(1, 2, 64)
