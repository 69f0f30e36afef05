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
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from armature.algorithms.sparse_selection import Ranking, Score
from armature.algorithms.task_vectors import HeldVector, SparseTensor, SparseVector
from armature.algorithms.temp_file_tensors import TempFileCandidates
from armature.algorithms.tensor_sources import Part, Shape, TensorSource


class Selectable(Protocol):
    """A source that was ranked once, to select from at several densities."""

    def select(self, density: float) -> SparseVector:
        """The vector at a density; raises ValueError beyond the one ranked for."""


def rank_globally(source: TensorSource, density: float, folder: Path | None = None) -> Selectable:
    """Rank over all tensors together.

    Args:
        source: What to select from.
        density: The largest one that will be asked for.
        folder: Where candidates are put aside; the system's temporary directory by default.

    Raises:
        ValueError: A density outside (0, 1], no entries, or one that is not finite.
    """
    return Ranking(source, density, store=TempFileCandidates(folder))


class RankingPerTensor:
    """Every tensor is ranked on its own."""

    def __init__(self, source: TensorSource, density: float, folder: Path | None = None) -> None:
        store = TempFileCandidates(folder)
        self._rankings = {name: Ranking(Part(source, [name]), density, store=store) for name in source.shapes}

    def select(self, density: float) -> SparseVector:
        """Density times its entries from each tensor, at least one."""
        return _Joined({name: ranking.select(density) for name, ranking in self._rankings.items()})


RANKINGS: dict[str, Callable[[TensorSource, float, Path | None], Selectable]] = {
    "global": rank_globally,
    "per_tensor": RankingPerTensor,
}
"""``(source, largest density, folder) -> ranking`` by the name of the rule."""


class _Joined(SparseVector):
    """Vectors of one tensor each."""

    def __init__(self, parts: Mapping[str, SparseVector]) -> None:
        self._parts = parts
        shapes = {name: part.shapes[name] for name, part in parts.items()}
        super().__init__(shapes, math.hypot(*(part.dense_norm for part in parts.values())))

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Of the tensor's own vector."""
        return self._parts[name].block(name, start)


def select_top(source: TensorSource, density: float, folder: Path | None = None) -> SparseVector:
    """The m entries of largest magnitude over all tensors together, exactly; raises as :func:`rank_globally`."""
    return rank_globally(source, density, folder).select(density)


def select_random(source: TensorSource, density: float, seed: int, folder: Path | None = None) -> SparseVector:
    """m entries drawn at random, none of them zero."""
    return Ranking(source, density, _random_score(seed, source.shapes), TempFileCandidates(folder)).select(density)


def permute_values(vector: SparseVector, seed: int) -> SparseVector:
    """A vector's values, shuffled over its support across all tensors; holds the vector in memory."""
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
    """A vector under signs that are a function of the seed and the entry's place."""

    def __init__(self, vector: SparseVector, seed: int) -> None:
        self._vector, self._score = vector, _random_score(seed, vector.shapes)
        super().__init__(vector.shapes, vector.dense_norm)

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Of the vector, with signs drawn."""
        positions, values = self._vector.block(name, start)
        negative = self._score(name, start, positions, values) & 2 != 0
        return positions, torch.where(negative, -values, values)


SELECTIONS: dict[str, Callable[..., SparseVector]] = {
    "global": lambda source, density, _seed, folder=None: select_top(source, density, folder),
    "per_tensor": lambda source, density, _seed, folder=None: RankingPerTensor(source, density, folder).select(density),
    "random": select_random,
    "permuted": lambda source, density, seed, folder=None: permute_values(select_top(source, density, folder), seed),
    "random_sign": lambda source, density, seed, folder=None: RandomSigns(select_top(source, density, folder), seed),
}
"""``(source, density, seed, folder=None) -> vector`` by the name of the rule."""


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
