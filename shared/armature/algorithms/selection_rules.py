"""The rules of selection by name: the paper's top-m, per tensor or over all, and the controls that test it.

Paper: ProSocialAlign (arXiv 2512.06515), section 3.2, for the top-m. The rest is ours:

    global       the m entries of largest |.| over all tensors together
    per_tensor   the same in every tensor on its own
    random       m entries drawn at random: weaker than the top-m at the same scale, not without effect
    permuted     the values of ``global`` shuffled over its support: no effect is expected
    random_sign  the values of ``global`` under random signs: no effect is expected

Symbols: m = max(1, round(density * entries)). Draws are functions of the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from armature.algorithms.sparse_selection import Score, SelectedVector
from armature.algorithms.task_vectors import HeldVector, SparseTensor, SparseVector
from armature.algorithms.tensor_sources import Shape, Spool, TensorSource


def select_top(source: TensorSource, density: float, _seed: int = 0) -> SparseVector:
    """The m entries of largest magnitude over all tensors together, exactly.

    Raises:
        ValueError: A density outside (0, 1], no entries, or one that is not finite.
    """
    return SelectedVector(source, density)


class PerTensor(SparseVector):
    """A selection in every tensor on its own."""

    def __init__(self, source: TensorSource, density: float, _seed: int = 0) -> None:
        spool = Spool()
        self._parts = {name: SelectedVector(_Only(source, name), density, spool=spool) for name in source.shapes}
        super().__init__(source.shapes, math.hypot(*(part.dense_norm for part in self._parts.values())))

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Of the tensor's own selection."""
        return self._parts[name].block(name, start)


class _Only:
    """One tensor of a source."""

    def __init__(self, source: TensorSource, name: str) -> None:
        self.read = source.read
        self.shapes = {name: source.shapes[name]}


def select_random(source: TensorSource, density: float, seed: int) -> SparseVector:
    """m entries drawn at random, none of them zero."""
    return SelectedVector(source, density, _random_score(seed, source.shapes))


def permute_values(source: TensorSource, density: float, seed: int) -> SparseVector:
    """The top-m's values, shuffled over its support across all tensors; holds the vector in memory."""
    vector = select_top(source, density)
    tensors = vector.tensors
    values = torch.cat([tensor.values for tensor in tensors.values()])
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    parts = torch.split(shuffled, [len(tensor.values) for tensor in tensors.values()])
    return HeldVector(
        {
            name: SparseTensor(tensor.indices, part.clone(), tensor.shape)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        },
        vector.dense_norm,
    )


class RandomSigns(SparseVector):
    """The top-m under signs that are a function of the seed and the entry's place."""

    def __init__(self, source: TensorSource, density: float, seed: int) -> None:
        self._vector, self._score = select_top(source, density), _random_score(seed, source.shapes)
        super().__init__(source.shapes, self._vector.dense_norm)

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Of the top-m, with signs drawn."""
        positions, values = self._vector.block(name, start)
        negative = self._score(name, start, positions, values) & 2 != 0
        return positions, torch.where(negative, -values, values)


SELECTIONS: dict[str, Callable[[TensorSource, float, int], SparseVector]] = {
    "global": select_top,
    "per_tensor": PerTensor,
    "random": select_random,
    "permuted": permute_values,
    "random_sign": RandomSigns,
}
"""``(source, density, seed) -> vector`` by the name of the rule."""


def _random_score(seed: int, shapes: Mapping[str, Shape]) -> Score:
    """A pseudo-random rank per entry, a function of the seed and the entry's place (splitmix64); 0 for a zero."""
    origins, entries = {}, 0
    for name in sorted(shapes):
        origins[name] = entries
        entries += math.prod(shapes[name])

    def score(name: str, start: int, positions: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
        bits = _splitmix(positions.long() + (origins[name] + start), seed)
        scores = torch.empty_like(values, dtype=torch.int32) if out is None else out
        return scores.copy_((bits & 0x7FFFFFFF) | 1).masked_fill_(values == 0, 0)

    return score


def _splitmix(counters: Tensor, seed: int) -> Tensor:
    """Mixed 64-bit counters. Shifts are arithmetic here and the reference's are logical: as good a mix, other bits."""
    mixed = (counters + 1) * -7046029254386353131 + seed
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return mixed ^ (mixed >> 31)
