"""The head's input: hidden states of streams by themselves, or linear combinations of two.

The head is the widest product of a step, and linear: ``w_s z_s + w_arm z_arm = (w_s h_s + w_arm h_arm) W^T``. A request
that needs nothing but the combination (:class:`armature.algorithms.guided_decoding.Mixture`) costs one row of the
head instead of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armature.inference.lean.step import index
from armature.inference.runner import Read


@dataclass(frozen=True)
class Readout:
    """N reads as tensors: ``rows`` and ``others`` (N,) are the hidden states that each is made of, with ``weights``
    (2, N, 1); None where nothing is combined."""

    rows: Tensor
    others: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, reads: Sequence[Read], rows: Sequence[int], device: torch.device) -> Readout:
        """Look up each read's rows; ``rows`` holds the row of each of the caller's numbers."""
        others = [read.row if read.other is None else read.other for read in reads]
        weights = [[read.weight for read in reads], [read.other_weight for read in reads]]
        combines = any(read.other is not None for read in reads)
        return cls(
            index([rows[read.row] for read in reads], device),
            index([rows[other] for other in others], device),
            torch.tensor(weights, dtype=torch.float32, device=device)[..., None] if combines else None,
        )

    def combine(self, normed: Tensor) -> Tensor:
        """Return the head's input (N, hidden), from the normed hidden states of all rows (rows, hidden).

        A read of one row is that row to the bit. A combination that is not finite falls back to its first row.
        """
        alone = normed[self.rows]
        if self.weights is None:
            return alone
        weight, other_weight = self.weights
        combined = torch.addcmul(alone.float() * weight, normed[self.others].float(), other_weight)
        return torch.where(combined.isfinite().all(-1, keepdim=True), combined, alone)
