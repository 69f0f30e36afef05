"""A step over exactly the rows and columns that exist: on a CPU, padding is work.

The head is the widest product of a step, and linear: ``w_s z_s + w_arm z_arm = (w_s h_s + w_arm h_arm) W^T``. So a read
of two rows combines their hidden states, and costs one row of the head instead of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armature.inference.lean.model import Branches, LeanModel
from armature.inference.lean.step import Arrangement, Caches, index
from armature.inference.runner import Read


@dataclass(frozen=True)
class _Readout:
    """N reads as tensors: the two rows of each, (N,) each, with weights (2, N, 1); None: none combines."""

    reads: Sequence[Read]
    rows: Tensor
    others: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, reads: Sequence[Read], rows: Sequence[int], device: torch.device) -> _Readout:
        others = [rows[read.row if read.other is None else read.other] for read in reads]
        weights = [[read.weight for read in reads], [read.other_weight for read in reads]]
        combines = any(read.other is not None for read in reads)
        table = torch.tensor(weights, dtype=torch.float32, device=device)[..., None] if combines else None
        return cls(reads, index([rows[read.row] for read in reads], device), index(others, device), table)

    def combine(self, normed: Tensor) -> Tensor:
        """Combine rows (rows, hidden) into the head's input (N, hidden); a row read alone stays to the bit."""
        alone = normed[self.rows]
        if self.weights is None:
            return alone
        weight, other_weight = self.weights
        combined = torch.addcmul(alone.float() * weight, normed[self.others].float(), other_weight)
        return torch.where(combined.isfinite().all(-1, keepdim=True), combined, alone)


class DynamicStep:
    """Implements :class:`armature.inference.lean.step.Step`. Without rows it holds no memory."""

    combines = True

    def __init__(self, model: LeanModel, caches: Caches, vocab_size: int | None) -> None:
        self._model = model
        self._caches = caches
        self._vocab_size = vocab_size
        self.rest()

    def arrange(self, arrangement: Arrangement) -> None:
        """Make the tensors that stay the same until the next join or eviction."""
        self._readout: _Readout | None = None
        self._rows = arrangement.rows
        self._branches = Branches.of(self._model, arrangement.parents, arrangement.cores)
        self._feeds, self._lengths = (
            index(numbers, self._model.device) for numbers in (arrangement.feeds, arrangement.lengths)
        )

    def rest(self) -> None:
        """Free all memory."""
        self.arrange(Arrangement((), (), (), (), ()))
        self._caches.clear()

    def __call__(self, tokens: Tensor, shortest: int, longest: int, reads: Sequence[Read] | None) -> Tensor:
        """Return logits after each stream's newest token; see :class:`armature.inference.lean.step.Step`."""
        lengths, trunk = self._lengths, len(self._feeds)
        attend = (
            self._caches.lower.extend(lengths[:trunk], shortest, longest),
            self._caches.upper.extend(lengths, shortest, longest),
        )
        hidden = self._model.forward(tokens[self._feeds][:, None], lengths[:trunk, None], self._branches, attend)
        lengths.add_(1)
        head_input = self._read(reads).combine(self._model.normed(hidden[:, 0]))
        return self._model.read(head_input)[:, : self._vocab_size]

    def _read(self, reads: Sequence[Read] | None) -> _Readout:
        """The latest readout while the same is asked for: making its tensors costs as much as a small product."""
        wanted = list(map(Read, range(len(self._rows))) if reads is None else reads)
        if self._readout is None or self._readout.reads != wanted:
            self._readout = _Readout.of(wanted, self._rows, self._model.device)
        return self._readout
