"""PBLoRA: factored = materialised = exported = the paper's formula, per row and affine in the preference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.conditioned_lora import (
    AdapterWeights,
    apply_adapter,
    delta_weight,
    export_lora,
    join_parts,
    split_parts,
)
from armature.algorithms.pblora import PBLoRAShape

SHAPE = PBLoRAShape(rank_shared=3, rank_conditioned=4, attributes=5, alpha=8.0)


def filled(in_features: int = 7, out_features: int = 6, shape: PBLoRAShape = SHAPE, seed: int = 0) -> AdapterWeights:
    """An adapter whose B is not zero, so that it has an effect."""
    torch.manual_seed(seed)
    weights = shape.initialise(in_features, out_features)
    return weights._replace(b=torch.randn_like(weights.b))


def dense_oracle(weights: AdapterWeights, p: np.ndarray, scale: float) -> np.ndarray:
    """The paper's DW(p), written out in numpy."""
    a, b, w1, w2 = (t.double().numpy() for t in weights)
    r1 = w1.shape[0]
    r2 = a.shape[0] - r1
    core = sum(p[k] * w2[k].reshape(r2, r2) for k in range(len(p)))
    return scale * (b[:, :r1] @ w1 @ a[:r1] + b[:, r1:] @ core @ a[r1:])


def draw_preferences(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(rows, SHAPE.attributes, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_factored_materialised_exported_and_the_paper_agree_per_row():
    weights, p = filled(), draw_preferences(4)
    x = torch.randn(4, 5, 7)
    factored = apply_adapter(weights, x, p, SHAPE)
    for row in range(4):
        dense = delta_weight(weights, p[row], SHAPE)
        lora_a, lora_b, bias = export_lora(weights, p[row], SHAPE)
        assert bias is None
        assert lora_a.shape == (7, 7)
        assert lora_b.shape == (6, 7)
        np.testing.assert_allclose(dense.numpy(), dense_oracle(weights, p[row].numpy(), SHAPE.scale), atol=1e-5)
        torch.testing.assert_close(x[row] @ dense.T, factored[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(x[row] @ lora_a.T @ lora_b.T, factored[row], atol=1e-5, rtol=1e-5)


@pytest.mark.trap(7)
def test_the_scale_divides_by_the_conditioned_rank_alone():
    assert SHAPE.scale == 8 / 4


@given(st.floats(0, 1), st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_the_delta_is_affine_in_the_preference(share, seed):
    weights, (p, q) = filled(seed=seed), draw_preferences(2, seed)
    mixed = delta_weight(weights, share * p + (1 - share) * q, SHAPE)
    ends = share * delta_weight(weights, p, SHAPE) + (1 - share) * delta_weight(weights, q, SHAPE)
    torch.testing.assert_close(mixed, ends, atol=1e-5, rtol=1e-5)


def test_initialisation_follows_the_paper_and_starts_as_the_identity():
    torch.manual_seed(0)
    shape = PBLoRAShape(4, 4, 5, 8.0)
    weights = shape.initialise(64, 32)
    for tensor, fan_in in ((weights.a, 64), (weights.w1, 4), (weights.w2, 16)):
        bound = 1 / math.sqrt(fan_in)
        assert tensor.dtype == torch.float32
        assert tensor.abs().max() <= bound
        assert tensor.abs().max() > 0.7 * bound
    assert not weights.b.any()
    assert not apply_adapter(weights, torch.randn(2, 3, 64), draw_preferences(2), shape).any()


def test_the_shared_rank_may_be_zero():
    shape = PBLoRAShape(0, 2, 5, 4.0)
    weights = filled(shape=shape)
    p = draw_preferences(1)
    dense = delta_weight(weights, p[0], shape)
    np.testing.assert_allclose(dense.numpy(), dense_oracle(weights, p[0].numpy(), shape.scale), atol=1e-5)


def test_the_core_is_block_diagonal():
    weights = filled()
    core, shift = SHAPE.core(weights.w1, weights.w2, draw_preferences(2))
    assert shift is None
    assert core.shape == (2, 7, 7)
    assert not core[:, :3, 3:].any()
    assert not core[:, 3:, :3].any()


@pytest.mark.parametrize("leading", [(), (5,)])
def test_parts_split_and_join_back(leading):
    stacked = AdapterWeights(*(torch.randn(*leading, *tensor.shape) for tensor in filled()))
    joined = join_parts(*split_parts(stacked))
    for before, after in zip(stacked, joined, strict=True):
        assert torch.equal(before, after)
    shared, conditioned = split_parts(stacked)
    assert sum(map(torch.numel, shared + conditioned)) == sum(map(torch.numel, stacked))


def test_gradients_match_finite_differences():
    shape = PBLoRAShape(2, 2, 5, 4.0)
    weights = AdapterWeights(*(t.double().requires_grad_() for t in filled(4, 3, shape)))
    x, p = torch.randn(2, 3, 4, dtype=torch.double), draw_preferences(2).double()
    assert torch.autograd.gradcheck(lambda *t: apply_adapter(AdapterWeights(*t), x, p, shape), tuple(weights))
