"""What a step's hidden states are multiplied with the head for: streams on their own, or mixtures of two.

The head is the widest product of a step, and linear: ``w_s z_s + w_arm z_arm = (w_s h_s + w_arm h_arm) W^T``. Who
wants nothing but the mixture (:class:`armature.algorithms.guided_decoding.Mixture`) costs one row of it, not two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from armature.inference.lean.step import index
from armature.inference.runner import Mixed, TwinLogits


class _Row(NamedTuple):
    """A row of the head's input: ``weight h[row] + other_weight h[other]``."""

    row: int
    other: int
    weight: float = 1.0
    other_weight: float = 0.0

    @classmethod
    def alone(cls, row: int) -> _Row:
        return cls(row, row)

    @classmethod
    def mixed(cls, safe: int, arm: int, wish: Mixed) -> _Row:
        """The ARM's reference is the safe stream."""
        return cls(safe, arm, wish.mixture.safe + wish.mixture.reference, wish.mixture.arm)


@dataclass(frozen=True)
class Readout:
    """The R rows of the head's input: one of each slot, then ARM streams on their own, then what is measured.

    ``rows`` and ``others`` (R,) are the hidden states that each is made of, with ``weights`` (2, R, 1), None if nothing
    is mixed. ``arm`` is each slot's ARM stream among the R.
    """

    rows: Tensor
    others: Tensor
    weights: Tensor | None
    arm: Tensor | slice
    slots: int
    measured: int

    @classmethod
    def of(
        cls,
        safe_rows: Sequence[int],
        arm_rows: Sequence[int | None],
        mixed: Sequence[Mixed | None],
        device: torch.device,
    ) -> Readout:
        """From where each slot's streams stand, and what is wanted of them."""
        wishes = mixed or [None] * len(safe_rows)
        streams = list(zip(safe_rows, arm_rows, wishes, strict=True))
        voices = [
            _Row.alone(safe) if arm is None or wish is None else _Row.mixed(safe, arm, wish)
            for safe, arm, wish in streams
        ]
        apart = [arm if wish is None else None for _, arm, wish in streams]
        measured = [_Row.alone(safe) for safe, _, wish in streams if wish and wish.measured]
        rows = [*voices, *(_Row.alone(arm) for arm in apart if arm is not None), *measured]
        weights = [[row.weight for row in rows], [row.other_weight for row in rows]]
        return cls(
            rows=index([row.row for row in rows], device),
            others=index([row.other for row in rows], device),
            weights=torch.tensor(weights, dtype=torch.float32, device=device)[..., None] if any(wishes) else None,
            arm=arm_index([arm is not None for arm in apart], device),
            slots=len(streams),
            measured=len(measured),
        )

    def mix(self, normed: Tensor) -> Tensor:
        """The head's input (R, hidden), from the normed hidden states of all streams (rows, hidden).

        What is not mixed is itself, to the bit. A mixture that is no number is the safe stream alone: an ARM that has
        none likes nothing, and the safe model decides.
        """
        alone = normed[self.rows]
        if self.weights is None:
            return alone
        weight, other_weight = self.weights
        mixed = torch.addcmul(alone.float() * weight, normed[self.others].float(), other_weight)
        return torch.where(mixed.isfinite().all(-1, keepdim=True), mixed, alone)

    def split(self, logits: Tensor) -> TwinLogits:
        """The head's output (R, V) by stream."""
        end = len(logits) - self.measured
        measured = logits[end:] if self.measured else None
        return TwinLogits(logits[: self.slots], logits[self.arm], measured=measured)


def arm_index(guided: Sequence[bool], device: torch.device) -> Tensor | slice:
    """Each slot's ARM stream, among a row of every slot and after them the ARM's of the guided; a slice if it can be.

    Who is not guided has its own row twice.
    """
    slots = len(guided)
    if all(guided) or not any(guided):
        return slice(slots, 2 * slots) if any(guided) else slice(slots)
    places = count(slots)
    return index([next(places) if is_guided else slot for slot, is_guided in enumerate(guided)], device)
