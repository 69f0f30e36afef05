"""Low-rank deltas by blocks: whatever the cut, the sum is the whole product's."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from armature.algorithms.low_rank_deltas import LowRankDelta

SIZE = st.integers(1, 9)


@given(rows=SIZE, columns=SIZE, rank=SIZE, block=st.integers(1, 30), seed=st.integers(0, 99))
def test_blocks_of_any_size_add_up(rows: int, columns: int, rank: int, block: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    shapes = (rows, rank), (rank, columns), (rows, columns)
    left, right, weight = (torch.randn(shape, generator=draw) for shape in shapes)
    delta, edited = LowRankDelta({"w": (left, right)}), weight.clone()
    assert delta.shapes == {"w": (rows, columns)}
    for start in range(0, weight.numel(), block):
        delta.add_block(edited.view(-1)[start : start + block], "w", start)
    torch.testing.assert_close(edited, weight + left @ right)


def test_half_precision_is_rounded_once() -> None:
    left, right = torch.full((2, 1), 0.001), torch.ones(1, 3)
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    LowRankDelta({"w": (left, right)}).add_block(weight.view(-1), "w", 0)
    assert torch.equal(weight, torch.full((2, 3), 1.001).bfloat16())
