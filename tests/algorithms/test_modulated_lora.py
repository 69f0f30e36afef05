"""Modulated LoRA: factored = looped = materialised = exported = the formula, per row and affine in the preference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from armature.algorithms.attribute_rows import append_row
from armature.algorithms.conditioned_lora import (
    AdapterWeights,
    ConditionedShape,
    apply_adapter,
    delta_weight,
    export_lora,
    join_parts,
    split_parts,
)
from armature.algorithms.modulated_lora import ModulatedShape, ScaledShape

K, IN, OUT, RANK = 5, 7, 6, 4
KINDS = pytest.mark.parametrize("kind", [ModulatedShape, ScaledShape])


def make_shape(kind: type[ConditionedShape]) -> ConditionedShape:
    return kind(rank_shared=1, rank_conditioned=3, attributes=K, alpha=6.0)


def filled(shape: ConditionedShape) -> AdapterWeights:
    draw = torch.Generator().manual_seed(0)
    return AdapterWeights(*(torch.randn(size, generator=draw) for size in shape.tensor_shapes(IN, OUT)))


def drawn(rows: int) -> torch.Tensor:
    return torch.rand(rows, K, generator=torch.Generator().manual_seed(1)).softmax(-1)


def oracle(weights: AdapterWeights, x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """``s B (gain(p) * (A x) + shift(p))`` of one token, a feature and an attribute at a time."""
    a, b, w1, w2 = (t.double().numpy() for t in weights)
    y = np.zeros(OUT)
    for feature in range(RANK):
        gain, shift = w1[0, feature], 0.0
        for k in range(K):
            gain += p[k] * w2[k, feature]
            shift += p[k] * w2[k, RANK + feature] if w2.shape[1] > RANK else 0.0
        y += 6.0 / 4 * b[:, feature] * (gain * (a[feature] @ x) + shift)
    return y


@KINDS
def test_factored_materialised_exported_and_the_formula_agree_per_row(kind: type[ConditionedShape]) -> None:
    shape, p, x = make_shape(kind), drawn(3), torch.randn(3, 2, IN, generator=torch.Generator().manual_seed(2))
    weights = filled(shape)
    together = apply_adapter(weights, x, p, shape)
    for row in range(3):
        alone = apply_adapter(weights, x[row : row + 1], p[row : row + 1], shape)[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
        expected = [oracle(weights, token, p[row].numpy()) for token in x[row].numpy()]
        np.testing.assert_allclose(together[row].numpy(), np.stack(expected), atol=1e-4)
        lora_a, lora_b, bias = export_lora(weights, p[row], shape)
        assert (lora_a.shape, lora_b.shape) == ((RANK, IN), (OUT, RANK))
        assert (bias is not None) == shape.shifts == (kind is ModulatedShape)
        constant = torch.zeros(OUT) if bias is None else bias
        torch.testing.assert_close(x[row] @ lora_a.T @ lora_b.T + constant, together[row], atol=1e-4, rtol=1e-4)
        dense = delta_weight(weights, p[row], shape)
        torch.testing.assert_close(x[row] @ dense.T + constant, together[row], atol=1e-4, rtol=1e-4)


@KINDS
def test_the_delta_is_affine_in_the_preference(kind: type[ConditionedShape]) -> None:
    shape, (p, q), x = make_shape(kind), drawn(2), torch.ones(1, 1, IN)
    weights = filled(shape)

    def at(preference: torch.Tensor) -> torch.Tensor:
        return apply_adapter(weights, x, preference[None], shape)

    torch.testing.assert_close(at(0.3 * p + 0.7 * q), 0.3 * at(p) + 0.7 * at(q), atol=1e-4, rtol=1e-4)


@KINDS
def test_a_fresh_adapter_does_nothing_and_its_attributes_differ(kind: type[ConditionedShape]) -> None:
    shape, p = make_shape(kind), drawn(2)
    torch.manual_seed(0)
    weights = shape.initialise(IN, OUT)
    assert [tuple(tensor.shape) for tensor in weights] == list(shape.tensor_shapes(IN, OUT))
    assert all(tensor.dtype == torch.float32 for tensor in weights)
    assert not apply_adapter(weights, torch.randn(2, 3, IN), p, shape).any()
    matrix, shift = shape.core(weights.w1, weights.w2, torch.eye(K))
    gains = torch.stack([row.diagonal() for row in matrix])
    assert len({tuple(row.tolist()) for row in gains}) == K
    assert ((gains < 0).any(0) & (gains > 0).any(0)).float().mean() > 0.5
    assert shift is None or not shift.any()


@KINDS
def test_gradients_match_finite_differences(kind: type[ConditionedShape]) -> None:
    shape, p = make_shape(kind), drawn(2).double()
    weights = tuple(tensor.double().requires_grad_() for tensor in filled(shape))
    x = torch.randn(2, 3, IN, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda *t: apply_adapter(AdapterWeights(*t), x, p, shape), weights)


@KINDS
def test_every_feature_is_shared_and_every_attribute_has_a_row(kind: type[ConditionedShape]) -> None:
    weights = filled(make_shape(kind))
    shared, conditioned = split_parts(weights)
    assert [tensor.shape for tensor in shared] == [weights.a.shape, weights.b.shape, weights.w1.shape]
    assert [tensor.numel() for tensor in conditioned] == [0, 0, weights.w2.numel()]
    for before, after in zip(weights, join_parts(shared, conditioned), strict=True):
        assert torch.equal(before, after)


def test_an_appended_attribute_adds_its_own_gain_and_shift() -> None:
    shape = ModulatedShape(0, 2, 1, 2.0)
    old = AdapterWeights(torch.eye(2), torch.eye(2), torch.ones(1, 2), torch.tensor([[2.0, 3.0, 10.0, 20.0]]))
    new = append_row(old)
    new.w2[-1] = torch.tensor([0.5, -1.0, 4.0, 8.0])
    longer = ModulatedShape(0, 2, 2, 2.0)
    y = apply_adapter(new, torch.tensor([[[1.0, 2.0]]]), torch.tensor([[0.5, 0.25]]), longer)
    expected = torch.tensor([[[1 + 1.0 + 0.125 + 5.0 + 1.0, 2 * (1 + 1.5 - 0.25) + 10.0 + 2.0]]])
    torch.testing.assert_close(y, expected)
    assert shape.scale == longer.scale == 1.0
