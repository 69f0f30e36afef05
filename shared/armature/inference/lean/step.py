"""The port between who stands where and what is computed for them: one step of all running rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from armature.inference.lean.kv_cache import KvCache
from armature.inference.lean.model import LeanModel
from armature.inference.runner import Mixed, TwinLogits


@dataclass(frozen=True)
class Arrangement:
    """Where everything stands until the next join or leave: S safe rows, after them A ARM rows.

    ``feeds`` (S,) is the slot whose token each safe row is fed, ``parents`` (A,) the safe row that each ARM row
    branches from, ``cores`` (A,) what its preference makes of the adapter (C,), ``lengths`` (S + A,) how many
    positions each row has cached, ``safe_rows`` and ``arm_rows`` (S,) the rows of each slot, None: it has no ARM row.
    """

    feeds: Sequence[int]
    parents: Sequence[int]
    cores: Sequence[Tensor]
    lengths: Sequence[int]
    safe_rows: Sequence[int]
    arm_rows: Sequence[int | None]


@dataclass(frozen=True)
class Caches:
    """Keys and values of the layers below the split, which safe rows alone pass, and of those above it."""

    lower: KvCache
    upper: KvCache

    def reserve(self, safe: int, rows: int, length: int) -> None:
        """Make room for so many safe rows, and rows of both streams, of such a length."""
        self.lower.reserve(safe, length)
        self.upper.reserve(rows, length)

    def clear(self) -> None:
        """Give the memory back."""
        self.lower.clear()
        self.upper.clear()


class Step(Protocol):
    """Feeds every row a token, on caches that have room for it."""

    @property
    def mixes(self) -> bool:
        """See :attr:`armature.inference.runner.Rows.mixes`."""

    def arrange(self, arrangement: Arrangement) -> None:
        """Somebody has joined or left, and somebody is there."""

    def rest(self) -> None:
        """Nobody is there any more."""

    def __call__(self, tokens: Tensor, shortest: int, longest: int, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """Logits after each slot's newest token (S,).

        Args:
            tokens: Of the slots.
            shortest: The least that any row has cached; rows know their lengths themselves.
            longest: The most.
            mixed: See :meth:`armature.inference.runner.Rows.step`.
        """


StepFactory = Callable[[LeanModel, Caches, int | None], Step]
"""From the model, the caches, and the vocabulary's size: logits past it are dropped."""


def index(values: Sequence[int], device: torch.device) -> Tensor:
    """Row numbers as a tensor."""
    return torch.tensor(values, dtype=torch.long, device=device)
