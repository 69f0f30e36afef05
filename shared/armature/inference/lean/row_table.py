"""Which stream owns which row of the batch: bookkeeping alone, no tensors.

Rows 0 to S - 1 are the trunk: streams without a parent. The A rows after them are the branches: streams that share the
layers below the split with their parent. So both regions are slices. Inside a region the order does not matter: a
freed row is filled with the region's last one, and when the trunk grows, only the branches in its way move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from armature.inference.runner import staying
from armature.inference.stream import Stream

Move = tuple[int, int]
"""A row's content is copied from the first row to the second."""


class Moves(NamedTuple):
    """Row copies, the trunk's first: the copies of one region may happen at once."""

    trunk: list[Move]
    branches: list[Move]


@dataclass
class RowTable:
    """The rows' owners; ``streams`` lists them in the caller's order."""

    streams: list[Stream] = field(default_factory=list)
    trunk: list[Stream] = field(default_factory=list)
    branches: list[Stream] = field(default_factory=list)

    def __len__(self) -> int:
        """S + A, the number of rows."""
        return len(self.streams)

    @property
    def rows(self) -> dict[Stream, int]:
        """The row of each stream."""
        return {stream: row for row, stream in enumerate([*self.trunk, *self.branches])}

    def copy(self) -> RowTable:
        """Make a table that changes by itself."""
        return RowTable([*self.streams], [*self.trunk], [*self.branches])

    def join(self, streams: Sequence[Stream]) -> list[Move]:
        """Add streams; returns the moves of the branches that the longer trunk pushes out of the way."""
        begin, new = len(self.trunk), [stream for stream in streams if stream.parent is None]
        pushed = min(len(new), len(self.branches))
        free = begin + max(len(new), len(self.branches))
        self.branches = self.branches[pushed:] + self.branches[:pushed]
        self.streams += streams
        self.trunk += new
        self.branches += [stream for stream in streams if stream.parent is not None]
        return [(begin + row, free + row) for row in range(pushed)]

    def evict(self, rows: Sequence[int]) -> Moves:
        """Drop the streams at these places of the caller's order; returns the moves that close the gaps."""
        self.streams = [self.streams[row] for row in staying(len(self.streams), rows)]
        left = set(self.streams)
        trunk = {row: owner for row, owner in enumerate(self.trunk) if owner in left}
        branches = {row: owner for row, owner in enumerate(self.branches, len(self.trunk)) if owner in left}
        trunk_moves = _close_gaps(trunk, 0)
        branch_moves = _close_gaps(branches, len(trunk))
        self.trunk = [trunk[row] for row in range(len(trunk))]
        self.branches = [branches[row] for row in range(len(trunk), len(trunk) + len(branches))]
        return Moves(trunk_moves, branch_moves)


def _close_gaps(owners: dict[int, Stream], begin: int) -> list[Move]:
    """Move ``owners`` to gapless rows from ``begin`` on, in place; return the moves, as few as possible."""
    region = range(begin, begin + len(owners))
    outside = [row for row in owners if row not in region]
    moves = list(zip(outside, [row for row in region if row not in owners], strict=True))
    for source, target in moves:
        owners[target] = owners.pop(source)
    return moves
