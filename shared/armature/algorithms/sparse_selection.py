"""Which entries of a difference are kept: exact selections in bounded memory, and the controls.

Paper: ProSocialAlign (arXiv 2512.06515), section 3.2: v_m is v on its m largest |.| coordinates, 0 elsewhere, with
m = max(1, round(density * entries)), round half to even.

What differs from the paper: it leaves m and the ranking open. Here ties go to the first (name, index), so that the
result is a function of its input, and an exact zero is never kept.

One pass reads the difference, for several densities at once. A sample bounds the threshold from below; what lies above
the bound goes to an unnamed temporary file together with a histogram of it, and the exact threshold is then found among
those candidates. A bound that turns out too high is lowered and the pass repeated, so the sample decides the cost and
never the answer.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from armature.algorithms.task_vectors import SparseVector
from armature.algorithms.temp_file_tensors import TempFileCandidates
from armature.algorithms.tensor_sources import BLOCK, Scratch, TensorSource, blocks, map_in_order, squares

SAMPLE_BLOCK, SAMPLE_BLOCKS = 1024, 1024
_DIGIT = 16
_BUCKETS = 1 << _DIGIT
_BEYOND = (1 << 31) - 1
"""A score that no finite value has."""


class Score(Protocol):
    """Ranks the entries of a block."""

    def __call__(self, name: str, start: int, positions: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
        """int32, higher is kept first and 0 never; into ``out`` if given.

        Args:
            name: The tensor.
            start: Where the block begins in it.
            positions: Of the entries in the block.
            values: Of the entries, float32.
            out: int32, as long as ``values``.
        """


def magnitude(name: str, start: int, positions: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
    """The bits of ``|value|``: non-negative floats sort like their bits."""
    return torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF, out=out)


class Ranking:
    """One pass over a source, from which every selection up to a density can be made.

    Args:
        source: What to select from; read once, or again after an unlucky sample.
        density: The largest share of the entries that will be asked for, in (0, 1].
        score: What ranks an entry.
        store: Where candidates go; a new one in the system's temporary directory by default.

    Raises:
        ValueError: A density outside (0, 1], no entries, or one that is not finite.
    """

    def __init__(
        self, source: TensorSource, density: float, score: Score = magnitude, store: TempFileCandidates | None = None
    ) -> None:
        self.shapes, self.score, self.store = source.shapes, score, store or TempFileCandidates()
        self._total = sum(math.prod(shape) for shape in source.shapes.values())
        if not self._total:
            raise ValueError("there are no entries to choose from")
        self._limit = self._count(density)
        sample, slack = _sample(source, score, self._total), 1.1
        while True:
            rank = math.ceil(len(sample) * self._limit / self._total * slack)
            bound = int(sample[-rank]) if rank < len(sample) else 1
            self.histogram, self.norm = self._scan(source, max(1, bound))
            if bound <= 1 or int(self.histogram.sum()) >= self._limit:
                break
            slack *= 4

    def select(self, density: float) -> SelectedVector:
        """The m entries of highest score, over all tensors of the source together.

        Raises:
            ValueError: A density outside (0, 1], or beyond the one ranked for.
        """
        count = self._count(density)
        if count > self._limit:
            raise ValueError(f"{self._limit} entries are ranked, not {count}")
        return SelectedVector(self, min(count, int(self.histogram.sum())))

    def _count(self, density: float) -> int:
        if not 0 < density <= 1:
            raise ValueError(f"density must be in (0, 1], not {density}")
        return max(1, round(density * self._total))

    def _scan(self, source: TensorSource, bound: int) -> tuple[Tensor, float]:
        """Store what scores at least ``bound``; its histogram over the scores' high half, and the source's norm."""
        histogram, parts, scratch = torch.zeros(_BUCKETS, dtype=torch.int64), [], Scratch()
        everywhere = torch.arange(BLOCK, dtype=torch.int32)

        def candidates(block: tuple[str, int, int]) -> tuple[Tensor, Tensor, Tensor, float]:
            name, start, stop = block
            values = source.read(name, start, stop)
            size, device = len(values), values.device
            square = squares(values, scratch.empty("squares", size, torch.float32, device))
            if not math.isfinite(square):
                raise ValueError(f"{name}: the difference is not finite")
            scores = scratch.empty("scores", size, torch.int32, device)
            self.score(name, start, everywhere[:size].to(device), values, scores)
            where = _at_least(scores, bound)
            digits = scores.index_select(0, where) >> _DIGIT
            return where, values.index_select(0, where), _histogram(digits), square

        for (name, start, _), (where, values, counts, square) in map_in_order(candidates, blocks(source.shapes)):
            self.store.append(name, start, where, values)
            histogram += counts
            parts.append(square)
        return histogram, math.sqrt(math.fsum(parts))


class SelectedVector(SparseVector):
    """The first entries of a ranking.

    Args:
        ranking: The ranking.
        count: How many of its candidates are kept.
    """

    def __init__(self, ranking: Ranking, count: int) -> None:
        super().__init__(ranking.shapes, ranking.norm)
        self._score, self._store = ranking.score, ranking.store
        self._find_threshold(ranking.histogram, count)

    @property
    def kept(self) -> int:
        """Known since the selection."""
        return self._kept

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """The candidates above the threshold, and of those at it the first few of all."""
        positions, values = self._store.read(name, start)
        scores = self._score(name, start, positions, values)
        where = _at_least(scores, self._threshold + ((name, start) > self._split))
        if (name, start) == self._split:
            equal = scores[where] == self._threshold
            where = where[~equal | (equal.cumsum(0) <= self._ties)]
        return positions.index_select(0, where).long(), values.index_select(0, where)

    def _find_threshold(self, histogram: Tensor, count: int) -> None:
        """The count-th highest score, its high and then its low half, and where the entries that equal it run out."""
        places = [(name, start) for name, start, _ in blocks(self.shapes)]
        self._threshold, self._kept, self._split, self._ties = _BEYOND, count, places[-1], 0
        if not count:
            return
        high, rank = _descend(histogram, count)

        def low_digits(place: tuple[str, int]) -> Tensor:
            scores = self._scores(place)
            return _histogram(scores[scores >> _DIGIT == high] & _BUCKETS - 1)

        histogram = torch.zeros_like(histogram)
        for _, part in map_in_order(low_digits, places):
            histogram += part
        low, self._ties = _descend(histogram, rank)
        self._threshold = threshold = high << _DIGIT | low
        if self._ties == int(histogram[low]):
            return  # every entry that equals it is kept
        for place, equal in map_in_order(lambda place: int(self._scores(place).eq(threshold).sum()), places):
            self._split = place
            if equal >= self._ties:
                break
            self._ties -= equal

    def _scores(self, place: tuple[str, int]) -> Tensor:
        return self._score(*place, *self._store.read(*place))


def _sample(source: TensorSource, score: Score, total: int) -> Tensor:
    """Scores of evenly spread short runs, sorted; none of a source so small that every entry may be a candidate."""
    places = list(blocks(source.shapes, max(SAMPLE_BLOCK, total // SAMPLE_BLOCKS)))
    if total <= SAMPLE_BLOCK * SAMPLE_BLOCKS:
        return torch.empty(0, dtype=torch.int32)
    parts = []
    for name, start, stop in places:
        values = source.read(name, start, min(stop, start + SAMPLE_BLOCK))
        parts.append(score(name, start, torch.arange(len(values), device=values.device), values).cpu())
    return torch.cat(parts).sort().values


def _at_least(scores: Tensor, bound: int) -> Tensor:
    """Where scores reach a bound. On a CPU torch needs six times as long for it as numpy."""
    if scores.device.type == "cpu":
        return torch.from_numpy((scores.numpy() >= bound).nonzero()[0])
    return (scores >= bound).nonzero().flatten()


def _histogram(digits: Tensor) -> Tensor:
    return torch.bincount(digits, minlength=_BUCKETS).cpu()


def _descend(histogram: Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the ``rank``-th highest entry, and the entry's rank within it."""
    covered = histogram.flip(0).cumsum(0)
    passed = int((covered < rank).sum())
    return len(histogram) - 1 - passed, rank - (int(covered[passed - 1]) if passed else 0)
