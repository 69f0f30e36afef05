"""The port of data-parallel training: this process's rows, and sums over all processes of the group.

Every process holds the whole adapter, adds its rows' gradients to those of the others, and takes the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:  # modules that load no torch import this port too
    from torch import Tensor

T = TypeVar("T")


class ProcessGroup(Protocol):
    """The processes that train together. Rank 0 alone saves checkpoints, reports progress, writes outputs."""

    @property
    def rank(self) -> int:
        """This process's rank, from 0."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        """Return this process's rows; over all processes each row comes once, and all shards have one length."""

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all processes; each must call this with the same shapes."""


class SingleProcess:
    """A process group of one, which has all rows."""

    rank = 0
    size = 1

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        """Return all rows."""
        return rows

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are: they are the sums."""
