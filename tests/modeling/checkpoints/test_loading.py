"""Loading checked folders, with and without a task vector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armature.algorithms.selection_rules import select_top
from armature.algorithms.task_vectors import SparseVector
from armature.algorithms.tensor_sources import LiveTensors
from armature.errors import AdapterBaseMismatch
from armature.modeling.checkpoints.loading import load_model, load_safe_model
from armature.modeling.checkpoints.task_vector import VectorOrigin, write_task_vector
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama

ORIGIN = VectorOrigin(base_model_digest="0" * 64, rule="global", density=0.1)
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def vector() -> SparseVector:
    difference = {
        name: torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, parameter in tiny_llama().named_parameters()
        if "proj" in name
    }
    return select_top(LiveTensors(difference), 0.1)


def test_safe_model_is_base_minus_scaled_vector(vector: SparseVector, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base")
    write_task_vector(vector, ORIGIN, tmp_path / "vector")
    safe = load_safe_model(folder, tmp_path / "vector", 1.5)
    sparse = vector.tensor(NAME)
    dense = torch.zeros(sparse.shape).view(-1).index_put((sparse.indices,), sparse.values).view(sparse.shape)
    base = load_model(folder)
    assert torch.equal(safe.get_parameter(NAME), base.get_parameter(NAME) - 1.5 * dense)
    assert torch.equal(safe.get_parameter("model.norm.weight"), base.get_parameter("model.norm.weight"))
    assert not safe.training


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scale_zero_or_no_vector_is_the_base_to_the_bit(scale: float, vector: SparseVector, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base", tiny_llama().to(torch.bfloat16))
    write_task_vector(vector, ORIGIN, tmp_path / "vector")
    safe = load_safe_model(folder, tmp_path / "vector" if not scale else None, scale)
    assert safe.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(safe.parameters(), load_model(folder).parameters(), strict=True))


def test_a_vector_of_another_model_is_refused(vector: SparseVector, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base", tiny_llama(layers=1))
    write_task_vector(vector, ORIGIN, tmp_path / "vector")
    with pytest.raises(AdapterBaseMismatch, match="does not fit"):
        load_safe_model(folder, tmp_path / "vector", 1.0)
