"""Sparse task vectors: what fine-tuning changed, its largest entries, and subtracting them (DiReg).

Paper: ProSocialAlign (arXiv 2512.06515), section 3.2; task arithmetic (arXiv 2212.04089) with a global top-m::

    v       = theta_H - theta_b                       in float32
    v_m     = v on its m largest |.| coordinates over all selected tensors together, 0 elsewhere
    theta_s = theta_b - lambda v_m                    in float32, cast to the stored dtype once

Symbols: m entries kept, m = max(1, round(density * entries)), round half to even; lambda the scale.

What differs from the paper: it leaves m, lambda and the choice of tensors open. Here the caller chooses the tensors,
the threshold is found exactly, ties are broken by (tensor name, flat index) so that the result is a function of its
input, and an exact zero is never kept. Tensors are read one at a time, three times over, so a mapping that reads lazily
keeps one tensor in memory, whatever the model's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_LOW_BITS = 16
_BUCKETS = 1 << _LOW_BITS


@dataclass(frozen=True)
class SparseTensor:
    """The kept entries of one tensor: sorted flat indices (int64), float32 values, and the whole tensor's shape."""

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SparseVector:
    """The kept entries of every selected tensor, by name in sorted order."""

    tensors: dict[str, SparseTensor]
    total: int
    """Entries of the selected tensors."""
    dense_norm: float
    """L2 norm of the whole difference over them."""

    @property
    def kept(self) -> int:
        """Entries kept; 0 when the difference is zero everywhere."""
        return sum(len(tensor.values) for tensor in self.tensors.values())

    @property
    def norm(self) -> float:
        """L2 norm of the kept entries."""
        return math.sqrt(math.fsum(_squares(tensor.values) for tensor in self.tensors.values()))


class Difference(Mapping[str, Tensor]):
    """``tuned - base`` in float32, computed tensor by tensor when asked for (trap T6: never in bfloat16).

    Args:
        tuned: Tensors by name; may read lazily.
        base: The same names and shapes.
        names: Which to compare; each of them in both.
    """

    def __init__(self, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], names: list[str]) -> None:
        self._tuned, self._base, self._names = tuned, base, sorted(names)

    def __getitem__(self, name: str) -> Tensor:
        tuned, base = self._tuned[name].detach(), self._base[name].detach()
        if tuned.shape != base.shape or not tuned.is_floating_point() or not base.is_floating_point():
            raise ValueError(f"{name}: {tuned.dtype} {tuple(tuned.shape)} and {base.dtype} {tuple(base.shape)} differ")
        delta = tuned.float() - base.float()
        if not torch.isfinite(delta).all():
            raise ValueError(f"{name}: the difference is not finite")
        return delta

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def select_top(difference: Mapping[str, Tensor], density: float) -> SparseVector:
    """Keep the ``m`` entries of largest magnitude over all tensors together, exactly.

    Args:
        difference: float32 tensors by name, all finite.
        density: m / entries, in (0, 1].

    Raises:
        ValueError: A density outside (0, 1], or no tensors.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], not {density}")
    threshold, ties, total = _find_threshold(difference, density)
    tensors, squares = {}, []
    for name in sorted(difference):
        dense = difference[name]
        delta, bits = dense.flatten(), _magnitude_bits(dense)
        squares.append(_squares(delta))
        tied = (bits == threshold).nonzero().flatten()[:ties]
        ties -= len(tied)
        keep = torch.cat([(bits > threshold).nonzero().flatten(), tied]).sort().values
        keep = keep[delta[keep] != 0]
        tensors[name] = SparseTensor(keep.cpu(), delta[keep].cpu(), tuple(dense.shape))
    return SparseVector(tensors, total, math.sqrt(math.fsum(squares)))


def permute_values(vector: SparseVector, generator: torch.Generator) -> SparseVector:
    """The control: the same values, shuffled over the same support across all tensors. It must not remove harm."""
    values = torch.cat([tensor.values for tensor in vector.tensors.values()])
    shuffled = values[torch.randperm(len(values), generator=generator)]
    parts = torch.split(shuffled, [len(tensor.values) for tensor in vector.tensors.values()])
    tensors = {
        name: SparseTensor(tensor.indices, part.clone(), tensor.shape)
        for (name, tensor), part in zip(vector.tensors.items(), parts, strict=True)
    }
    return SparseVector(tensors, vector.total, vector.dense_norm)


SELECTIONS: dict[str, Callable[[SparseVector, torch.Generator], SparseVector]] = {
    "global": lambda vector, _generator: vector,
    "permuted": permute_values,
}
"""What happens to the selected entries, by the name of the rule."""


@torch.no_grad()
def subtract_task_vector(parameters: Mapping[str, Tensor], vector: SparseVector, scale: float) -> None:
    """``theta <- theta - scale * v`` in place: in float32, cast once. Tensors the vector does not name keep their bits.

    Pass deduplicated parameters (``dict(model.named_parameters())``), so that tied weights are edited once (trap T5).

    Raises:
        ValueError: A negative scale, which would add what the vector stands for; or tensors that do not fit. Nothing
            has been changed then.
    """
    if not scale >= 0:
        raise ValueError(f"scale must be >= 0, not {scale}: a negative one would add the behaviour")
    for name, sparse in vector.tensors.items():
        if name not in parameters or tuple(parameters[name].shape) != sparse.shape:
            raise ValueError(f"the task vector's {name} of shape {sparse.shape} has no counterpart in the model")
    if scale == 0:
        return
    for name, sparse in vector.tensors.items():
        subtract_from_tensor(parameters[name], sparse, scale)


def subtract_from_tensor(tensor: Tensor, sparse: SparseTensor, scale: float) -> None:
    """The same for one tensor, for callers that stream a checkpoint."""
    flat = tensor.view(-1)
    indices = sparse.indices.to(tensor.device)
    edited = flat[indices].float() - scale * sparse.values.to(tensor.device)
    flat[indices] = edited.to(tensor.dtype)


def _find_threshold(difference: Mapping[str, Tensor], density: float) -> tuple[int, int, int]:
    """Bits of the m-th largest magnitude, how many entries equal to it are among the m, and the number of entries.

    Non-negative floats sort like their bits, so two histograms, over the high and then the low half of the bits, find
    the threshold exactly.
    """
    high = _count(_magnitude_bits(difference[name]) >> _LOW_BITS for name in difference)
    total = int(high.sum())
    if not total:
        raise ValueError("there are no entries to choose from")
    top, rank = _descend(high, max(1, round(density * total)))
    low = _count(
        bits[bits >> _LOW_BITS == top] & (_BUCKETS - 1) for bits in (_magnitude_bits(difference[n]) for n in difference)
    )
    bottom, rank = _descend(low, rank)
    return (top << _LOW_BITS) | bottom, rank, total


def _count(buckets: Iterable[Tensor]) -> Tensor:
    histogram = torch.zeros(_BUCKETS, dtype=torch.int64)
    for tensor in buckets:
        histogram += torch.bincount(tensor, minlength=_BUCKETS).cpu()
    return histogram


def _descend(histogram: Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the ``rank``-th largest entry, and the entry's rank within it."""
    covered = histogram.flip(0).cumsum(0)
    passed = int((covered < rank).sum())
    before = int(covered[passed - 1]) if passed else 0
    return _BUCKETS - 1 - passed, rank - before


def _magnitude_bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().abs().view(torch.int32)


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())
