"""Loading checked folders, and task vectors on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armature.algorithms.task_vectors import SparseTensor, SparseVector, select_top
from armature.errors import AdapterBaseMismatch, InvalidSafetensors
from armature.modeling.loading import load_model, load_safe_model
from armature.modeling.task_vector_files import DESCRIPTION, TENSORS, read_task_vector, write_task_vector
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def vector() -> SparseVector:
    difference = {
        name: torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, parameter in tiny_llama().named_parameters()
        if "proj" in name
    }
    return select_top(difference, 0.1)


def test_vectors_survive_the_disk_and_give_the_same_bytes(vector: SparseVector, tmp_path: Path) -> None:
    write_task_vector(vector, tmp_path / "a")
    write_task_vector(vector, tmp_path / "b")
    again = read_task_vector(tmp_path / "a")
    assert (again.total, again.dense_norm, again.norm) == (vector.total, vector.dense_norm, vector.norm)
    for name, sparse in vector.tensors.items():
        assert torch.equal(again.tensors[name].indices, sparse.indices)
        assert torch.equal(again.tensors[name].values, sparse.values)
        assert again.tensors[name].shape == sparse.shape
    for file in (TENSORS, DESCRIPTION):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_safe_model_is_base_minus_scaled_vector(vector: SparseVector, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base")
    write_task_vector(vector, tmp_path / "vector")
    safe = load_safe_model(folder, tmp_path / "vector", 1.5)
    sparse = vector.tensors[NAME]
    dense = torch.zeros(sparse.shape).view(-1).index_put((sparse.indices,), sparse.values).view(sparse.shape)
    base = load_model(folder)
    assert torch.equal(safe.get_parameter(NAME), base.get_parameter(NAME) - 1.5 * dense)
    assert torch.equal(safe.get_parameter("model.norm.weight"), base.get_parameter("model.norm.weight"))
    assert not safe.training


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scale_zero_or_no_vector_is_the_base_to_the_bit(scale: float, vector: SparseVector, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base", tiny_llama().to(torch.bfloat16))
    write_task_vector(vector, tmp_path / "vector")
    safe = load_safe_model(folder, tmp_path / "vector" if not scale else None, scale)
    assert safe.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(safe.parameters(), load_model(folder).parameters(), strict=True))


def test_a_vector_of_another_model_is_refused(vector: SparseVector, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base", tiny_llama(layers=1))
    write_task_vector(vector, tmp_path / "vector")
    with pytest.raises(AdapterBaseMismatch, match="does not fit"):
        load_safe_model(folder, tmp_path / "vector", 1.0)


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def change_description(folder: Path, **changes: Any) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BREAKS: dict[str, Any] = {
    "outside": lambda f: change_tensors(f, lambda t: t[NAME + ".indices"].add_(10**6)),
    "negative": lambda f: change_tensors(f, lambda t: t[NAME + ".indices"].sub_(10**6)),
    "unsorted": lambda f: change_tensors(f, lambda t: t.update({NAME + ".indices": t[NAME + ".indices"].flip(0)})),
    "twice": lambda f: change_tensors(f, lambda t: t[NAME + ".indices"].zero_()),
    "NaN": lambda f: change_tensors(f, lambda t: t[NAME + ".values"].fill_(float("nan"))),
    "lengths differ": lambda f: change_tensors(f, lambda t: t.update({NAME + ".values": torch.ones(3)})),
    "half precision": lambda f: change_tensors(f, lambda t: t.update({NAME + ".values": t[NAME + ".values"].half()})),
    "tensor missing": lambda f: change_tensors(f, lambda t: t.pop(NAME + ".values")),
    "no description": lambda f: (f / DESCRIPTION).unlink(),
    "description is a list": lambda f: (f / DESCRIPTION).write_text("[]"),
    "unknown field": lambda f: change_description(f, extra=1),
    "NaN norm": lambda f: (f / DESCRIPTION).write_text(
        (f / DESCRIPTION).read_text().replace('"dense_norm":', '"dense_norm":NaN,"x":')
    ),
}


@pytest.mark.parametrize("case", sorted(BREAKS))
def test_damaged_vectors_are_refused(case: str, vector: SparseVector, tmp_path: Path) -> None:
    write_task_vector(vector, tmp_path / "vector")
    BREAKS[case](tmp_path / "vector")
    with pytest.raises(InvalidSafetensors):
        read_task_vector(tmp_path / "vector")


def test_a_tensor_without_entries_is_kept(tmp_path: Path) -> None:
    empty = SparseTensor(torch.zeros(0, dtype=torch.long), torch.zeros(0), (2, 3))
    full = SparseTensor(torch.tensor([0, 5]), torch.tensor([1.0, -1.0]), (2, 3))
    write_task_vector(SparseVector({"a": empty, "b": full}, 12, 1.5), tmp_path / "vector")
    assert read_task_vector(tmp_path / "vector").kept == 2
