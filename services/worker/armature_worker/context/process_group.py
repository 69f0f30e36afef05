"""Data-parallel training as a trainer sees it: which rows are this process's, and sums over all processes.

Every process holds the whole adapter, adds its rows' gradients to those of the others and takes the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:  # the worker's shell knows this port, and runs without torch
    from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that train together. Only rank 0 saves checkpoints, reports progress and writes outputs."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """The rows of this process; over all processes each row comes once, and all shares are of one length."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all processes, which all call this with the same shapes."""


class SingleRank:
    """One process, which has all the rows."""

    rank = 0
    size = 1

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """All of them."""
        return rows

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors: they are the sums."""
