"""A sparse task vector on disk: ``task_vector.safetensors`` and what it says of itself in ``task_vector.json``.

Per tensor ``<name>.indices`` (sorted flat positions, int32 where they fit) and ``<name>.values`` (float32: a bfloat16
difference would lose most of its entries, trap T6).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from armature.algorithms.task_vectors import SparseTensor, SparseVector
from armature.contracts.base import Contract, canonical_json
from armature.errors import InvalidSafetensors
from armature.modeling.safetensors_files import check_finite, read_header

TENSORS, DESCRIPTION = "task_vector.safetensors", "task_vector.json"
_INDICES, _VALUES = ".indices", ".values"
_INT32_LIMIT = 2**31


class _Description(Contract):
    schema_version: int
    shapes: dict[str, list[int]]
    total: int
    dense_norm: float


def write_task_vector(vector: SparseVector, folder: Path) -> None:
    """Write the vector into a new folder; the same vector gives the same bytes."""
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, sparse in vector.tensors.items():
        small = torch.Size(sparse.shape).numel() <= _INT32_LIMIT
        tensors[name + _INDICES] = sparse.indices.to(torch.int32 if small else torch.int64)
        tensors[name + _VALUES] = sparse.values.float().contiguous()
    save_file(tensors, folder / TENSORS)
    description = _Description(
        schema_version=1,
        shapes={name: list(sparse.shape) for name, sparse in vector.tensors.items()},
        total=vector.total,
        dense_norm=vector.dense_norm,
    )
    (folder / DESCRIPTION).write_bytes(canonical_json(description.model_dump(mode="json")))


def read_task_vector(folder: Path) -> SparseVector:
    """Read a vector back, checking that every entry lies in its tensor.

    Raises:
        InvalidSafetensors: The files are malformed, contradict each other or hold NaN.
    """
    try:
        description = _Description.model_validate(_read_json(folder / DESCRIPTION))
    except ValidationError as error:
        raise InvalidSafetensors(f"{DESCRIPTION} is malformed", param=DESCRIPTION) from error
    entries = read_header(folder / TENSORS, {"F32", "I32", "I64"})
    expected = {name + part for name in description.shapes for part in (_INDICES, _VALUES)}
    if entries.keys() != expected:
        raise InvalidSafetensors(f"{TENSORS} does not hold the tensors of {DESCRIPTION}", param=TENSORS)
    check_finite(entries)
    stored = load_file(folder / TENSORS)
    tensors = {
        name: SparseTensor(stored[name + _INDICES].long(), stored[name + _VALUES], tuple(shape))
        for name, shape in sorted(description.shapes.items())
    }
    for name, sparse in tensors.items():
        _check_entries(name, sparse)
    return SparseVector(tensors, description.total, description.dense_norm)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidSafetensors(f"{path.name} can not be read", param=path.name) from error


def _check_entries(name: str, sparse: SparseTensor) -> None:
    indices, size = sparse.indices, torch.Size(sparse.shape).numel()
    fits = indices.dim() == 1 and indices.shape == sparse.values.shape and sparse.values.dtype == torch.float32
    if fits and len(indices):
        fits = bool((indices.diff() > 0).all()) and int(indices[0]) >= 0 and int(indices[-1]) < size
    if not fits:
        raise InvalidSafetensors(f"the entries of {name} do not lie in its tensor in order", param=TENSORS)
