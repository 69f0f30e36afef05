"""The port between row bookkeeping and computation: one forward pass of all running rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from armature.inference.lean.kv_cache import KvCache
from armature.inference.lean.model import LeanModel
from armature.inference.runner import Read


@dataclass(frozen=True)
class Arrangement:
    """Where the streams are until the next join or eviction: S trunk rows, after them A branch rows.

    ``feeds`` (S,) is the caller's number of each trunk row, whose token it is fed; ``parents`` (A,) the trunk row that
    each branch row branches from; ``cores`` (A,) the adapter's cores under its preference (C,); ``lengths`` (S + A,)
    the cached positions of each row; ``rows`` (S + A,) the row of each of the caller's numbers.
    """

    feeds: Sequence[int]
    parents: Sequence[int]
    cores: Sequence[Tensor]
    lengths: Sequence[int]
    rows: Sequence[int]


@dataclass(frozen=True)
class Caches:
    """Keys and values of the layers below the split, which trunk rows alone pass, and of those above it."""

    lower: KvCache
    upper: KvCache

    def reserve(self, trunk: int, rows: int, length: int) -> None:
        """Make room for ``trunk`` rows below the split and ``rows`` above it, ``length`` positions each."""
        self.lower.reserve(trunk, length)
        self.upper.reserve(rows, length)

    def clear(self) -> None:
        """Free the memory."""
        self.lower.clear()
        self.upper.clear()


class Step(Protocol):
    """Feeds every row a token, on caches that have room for it."""

    @property
    def combines(self) -> bool:
        """See :attr:`armature.inference.runner.ModelRunner.combines`."""

    def arrange(self, arrangement: Arrangement) -> None:
        """Take over a new arrangement of at least one row."""

    def rest(self) -> None:
        """Let go of the arrangement: there are no rows."""

    def __call__(self, tokens: Tensor, shortest: int, longest: int, reads: Sequence[Read] | None) -> Tensor:
        """Return logits after each stream's newest token, (reads, V).

        Args:
            tokens: Ids in the caller's order (S + A,).
            shortest: The fewest positions that any row has cached; rows know their own lengths.
            longest: The most.
            reads: See :meth:`armature.inference.runner.ModelRunner.decode`.
        """


StepFactory = Callable[[LeanModel, Caches, int | None], Step]
"""From the model, the caches, and the vocabulary's size: logits past it are dropped."""


def index(values: Sequence[int], device: torch.device) -> Tensor:
    """Make a tensor of row numbers."""
    return torch.tensor(values, dtype=torch.long, device=device)
