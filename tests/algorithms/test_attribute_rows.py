"""A new row of W2: nothing changes without it, and its gradient is all that is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from armature.algorithms.attribute_rows import append_row, keep_last_row
from armature.algorithms.conditioned_lora import AdapterWeights, ConditionedShape, apply_adapter
from armature.algorithms.modulated_lora import ModulatedShape, ScaledShape
from armature.algorithms.pblora import PBLoRAShape


def drawn(shape: ConditionedShape) -> AdapterWeights:
    draw = torch.Generator().manual_seed(0)
    return AdapterWeights(*(torch.randn(size, generator=draw) for size in shape.tensor_shapes(5, 4)))


@pytest.mark.parametrize("kind", [PBLoRAShape, ModulatedShape, ScaledShape])
def test_at_weight_zero_the_adapter_is_the_old_one(kind: type[ConditionedShape]) -> None:
    shape, longer = kind(2, 3, 2, 6.0), kind(2, 3, 3, 6.0)
    old, x, p = drawn(shape), torch.randn(3, 4, 5), torch.rand(3, 2)
    new = append_row(old)
    new.w2[-1] = 100.0
    padded = torch.cat([p, torch.zeros(3, 1)], 1)
    torch.testing.assert_close(
        apply_adapter(new, x, padded, longer), apply_adapter(old, x, p, shape), atol=1e-5, rtol=1e-6
    )


def test_the_new_row_adds_its_own_core_to_the_old_one() -> None:
    shape = PBLoRAShape(1, 2, 1, 2.0)
    old, x = drawn(shape), torch.randn(1, 1, 5)
    new = append_row(old)
    assert torch.equal(new.w2[:-1], old.w2)
    assert not new.w2[-1].any()
    new.w2[-1] = torch.arange(4.0)
    a, b, w1, w2 = (tensor.numpy() for tensor in new)
    core = np.zeros((3, 3))
    core[:1, :1], core[1:, 1:] = w1, (0.25 * w2[0] + 0.75 * w2[1]).reshape(2, 2)
    expected = 1.0 * b @ core @ a @ x.numpy()[0, 0]
    got = apply_adapter(new, x, torch.tensor([[0.25, 0.75]]), shape)[0, 0].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradients_of_everything_old_are_zero() -> None:
    gradients = drawn(PBLoRAShape(2, 3, 3, 1.0))
    kept = keep_last_row(gradients)
    assert torch.equal(kept.w2[-1], gradients.w2[-1])
    assert not any(tensor.any() for tensor in (kept.a, kept.b, kept.w1, kept.w2[:-1]))
    assert [tensor.shape for tensor in kept] == [tensor.shape for tensor in gradients]
