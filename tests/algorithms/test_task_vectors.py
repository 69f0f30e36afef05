"""Subtracting a task vector: in float32 and once, never the wrong way round, and undone to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.selection_rules import select_top
from armature.algorithms.task_vectors import (
    HeldVector,
    SparseTensor,
    SparseVector,
    restore_entries,
    save_entries,
    subtract_task_vector,
)
from armature.algorithms.tensor_sources import BLOCK, Difference, LiveTensors
from tests.support.tiny_models import tiny_llama


def ones(shapes) -> SparseVector:
    return select_top(LiveTensors({name: torch.ones(shape) for name, shape in shapes.items()}), 1.0)


@pytest.mark.trap(6)
def test_subtraction_rounds_once():
    """256 - 0.75 is 255.25, which bfloat16 rounds to 255; a bfloat16 product of scale and value would round twice."""
    parameters = {"w": torch.tensor([1.0, 256.0]).bfloat16()}
    subtract_task_vector(parameters, select_top(LiveTensors({"w": torch.tensor([0.0, 0.75])}), 0.5), 1.0)
    assert parameters["w"].tolist() == [1.0, torch.tensor(255.25).bfloat16().item()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(st.integers(0, 2**32), st.floats(0, 50))
@settings(deadline=None, max_examples=25)
def test_subtraction_equals_numpy_and_undo_restores_every_bit(dtype, seed, scale):
    rng = np.random.default_rng(seed)
    weights, dense = rng.standard_normal((2, 6, 7)).astype(np.float32)
    vector = select_top(LiveTensors({"w": torch.from_numpy(dense)}), 0.3)
    parameters = {"w": torch.from_numpy(weights).to(dtype), "other": torch.ones(3)}
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    saved = save_entries(parameters, vector)
    subtract_task_vector(parameters, vector, scale)
    kept = np.abs(dense) >= np.sort(np.abs(dense).ravel())[-vector.kept]
    stored = before["w"].float().numpy().astype(np.float64)
    expected = torch.from_numpy(np.where(kept, stored - scale * dense.astype(np.float64), stored))
    torch.testing.assert_close(parameters["w"].double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    restore_entries(parameters, saved)
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters.items())


def test_a_vector_in_memory_is_read_by_blocks():
    indices = torch.tensor([0, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
    vector = HeldVector({"w": SparseTensor(indices, torch.arange(1.0, 5.0), (3, BLOCK))}, 9.0)
    found = [[part.tolist() for part in vector.block("w", start)] for start in range(0, 3 * BLOCK, BLOCK)]
    assert found == [[[0, BLOCK - 1], [1.0, 2.0]], [[0], [3.0]], [[5], [4.0]]]
    assert torch.equal(vector.tensor("w").indices, indices)
    assert (vector.kept, vector.total, vector.norm) == (4, 3 * BLOCK, pytest.approx(30**0.5))


def test_subtraction_removes_the_tuning_and_scale_zero_nothing():
    base, tuned = tiny_llama(0), tiny_llama(1)
    names = [name for name, p in base.named_parameters() if p.dim() == 2]
    vector = select_top(Difference(LiveTensors(tuned.state_dict()), LiveTensors(base.state_dict()), names), 1.0)
    before = {name: p.clone() for name, p in tuned.named_parameters()}
    subtract_task_vector(dict(tuned.named_parameters()), vector, 0.0)
    assert all(torch.equal(before[name], p) for name, p in tuned.named_parameters())
    subtract_task_vector(dict(tuned.named_parameters()), vector, 1.0)
    for name, parameter in tuned.named_parameters():
        torch.testing.assert_close(parameter, base.state_dict()[name], atol=1e-6, rtol=0)


@pytest.mark.trap(5)
def test_tied_embeddings_are_edited_once():
    model = tiny_llama()
    name = "model.embed_tokens.weight"
    before = model.get_input_embeddings().weight.detach().clone()
    subtract_task_vector(dict(model.named_parameters()), ones({name: before.shape}), 0.5)
    assert torch.equal(model.lm_head.weight, before - 0.5)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_negative_scales_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be >= 0"):
        subtract_task_vector({"w": torch.ones(2)}, ones({"w": (2,)}), scale)


def test_a_vector_that_does_not_fit_changes_nothing():
    parameters = {"a": torch.ones(2), "b": torch.ones(3)}
    for names in ("ab", "ac"):
        vector = ones(dict.fromkeys(names, (2,)))
        with pytest.raises(ValueError, match="no counterpart"):
            subtract_task_vector(parameters, vector, 1.0)
    assert all((tensor == 1).all() for tensor in parameters.values())
