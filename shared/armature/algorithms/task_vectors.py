"""Sparse task vectors: the entries of a difference that were kept, and subtracting them exactly (DiReg).

Paper: ProSocialAlign (arXiv 2512.06515), section 3.2; task arithmetic (arXiv 2212.04089)::

    theta_s = theta_b - lambda v_m               in float32, cast to the stored dtype once

Symbols: v_m the entries of v = theta_H - theta_b (:mod:`armature.algorithms.tensor_sources`) that a rule of
:mod:`armature.algorithms.sparse_selection` keeps; lambda the scale.

What differs from the paper: it leaves the choice of tensors open; here the caller chooses. A vector is read block by
block, so it may lie on disk. Subtracting can be undone to the bit, which adding it back can not (rounding).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from armature.algorithms.tensor_sources import BLOCK, Shape, blocks, squares


@dataclass(frozen=True)
class SparseTensor:
    """The kept entries of one tensor: sorted flat indices (int64), float32 values, and the whole tensor's shape."""

    indices: Tensor
    values: Tensor
    shape: Shape


class SparseVector(ABC):
    """The kept entries of every selected tensor, read block by block.

    Args:
        shapes: Of the selected tensors.
        dense_norm: L2 norm of the whole difference over them.
    """

    def __init__(self, shapes: Mapping[str, Shape], dense_norm: float) -> None:
        self.shapes = {name: shapes[name] for name in sorted(shapes)}
        self.dense_norm = dense_norm

    @abstractmethod
    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Of the block at ``start``: sorted positions relative to it (int64), and float32 values; on the CPU."""

    @property
    def tensors(self) -> dict[str, SparseTensor]:
        """The whole vector in memory, by name in sorted order."""
        return {name: self.tensor(name) for name in self.shapes}

    @property
    def total(self) -> int:
        """Entries of the selected tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def kept(self) -> int:
        """Entries kept; 0 when the difference is zero everywhere."""
        return sum(len(self.block(name, start)[1]) for name, start, _ in blocks(self.shapes))

    @property
    def norm(self) -> float:
        """L2 norm of the kept entries."""
        return math.sqrt(math.fsum(squares(self.block(name, start)[1]) for name, start, _ in blocks(self.shapes)))

    def tensor(self, name: str) -> SparseTensor:
        """All kept entries of one tensor."""
        shape = self.shapes[name]
        parts = [(start, *self.block(name, start)) for _, start, _ in blocks({name: shape})]
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *(start + where for start, where, _ in parts)])
        return SparseTensor(indices, torch.cat([torch.empty(0), *(values for *_, values in parts)]), shape)


class HeldVector(SparseVector):
    """A sparse vector held in memory."""

    def __init__(self, tensors: Mapping[str, SparseTensor], dense_norm: float) -> None:
        super().__init__({name: tensor.shape for name, tensor in tensors.items()}, dense_norm)
        self._tensors = tensors

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Found by bisection."""
        tensor = self._tensors[name]
        low, high = torch.searchsorted(tensor.indices, torch.tensor([start, start + BLOCK])).tolist()
        return tensor.indices[low:high] - start, tensor.values[low:high]


@torch.no_grad()
def subtract_task_vector(parameters: Mapping[str, Tensor], vector: SparseVector, scale: float) -> None:
    """``theta <- theta - scale * v`` in place: in float32, cast once. Tensors the vector does not name keep their bits.

    Pass deduplicated parameters (``dict(model.named_parameters())``), so that tied weights are
    edited once (docs/traps.md, 5). :func:`save_entries` before and :func:`restore_entries` after undo it to the bit.

    Raises:
        ValueError: A negative scale, which would add what the vector stands for; or tensors that do not fit. Nothing
            has been changed then.
    """
    check_scale(scale)
    check_fit({name: tuple(parameter.shape) for name, parameter in parameters.items()}, vector)
    if scale == 0:
        return
    for name, start, stop in blocks(vector.shapes):
        subtract_block(parameters[name].view(-1)[start:stop], *vector.block(name, start), scale)


def subtract_block(entries: Tensor, indices: Tensor, values: Tensor, scale: float) -> None:
    """The same for one block of one tensor, for callers that stream a checkpoint."""
    where = indices.to(entries.device)
    edited = entries.index_select(0, where).float() - scale * values.to(entries.device)
    entries.index_copy_(0, where, edited.to(entries.dtype))


def save_entries(parameters: Mapping[str, Tensor], vector: SparseVector) -> dict[str, tuple[Tensor, Tensor]]:
    """What :func:`subtract_task_vector` will overwrite: positions and stored values by name.

    Raises:
        ValueError: The vector does not fit.
    """
    check_fit({name: tuple(parameter.shape) for name, parameter in parameters.items()}, vector)
    where = {name: vector.tensor(name).indices.to(parameters[name].device) for name in vector.shapes}
    return {name: (at, parameters[name].detach().view(-1)[at]) for name, at in where.items()}


@torch.no_grad()
def restore_entries(parameters: Mapping[str, Tensor], saved: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Undo a subtraction to the bit."""
    for name, (where, values) in saved.items():
        parameters[name].view(-1)[where] = values


def check_scale(scale: float) -> None:
    """Refuse a scale that would add what the vector stands for.

    Raises:
        ValueError: It is negative, NaN or infinite.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be >= 0 and finite, not {scale}: a negative one would add the behaviour")


def check_fit(shapes: Mapping[str, Shape], vector: SparseVector) -> None:
    """Refuse a vector of another model.

    Raises:
        ValueError: A tensor that the vector names is missing or has another shape.
    """
    for name, shape in vector.shapes.items():
        if shapes.get(name) != shape:
            raise ValueError(f"the task vector's {name} of shape {shape} has no counterpart in the model")
