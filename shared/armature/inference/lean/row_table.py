"""Who owns which row of the batch: pure bookkeeping, no tensors.

Rows 0 to S - 1 are the safe streams of S requests, the A rows after them the ARM streams of those that are guided, so
that both regions are slices. Inside a region the order does not matter: whoever leaves is replaced by the last row, and
when the safe region grows, only the ARM rows that stand in its way move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Move = tuple[int, int]
"""A row's content goes from the first row to the second."""


class Moves(NamedTuple):
    """Row copies, the safe region's first: a region's own copies may happen at once."""

    safe: list[Move]
    arm: list[Move]


@dataclass
class RowTable:
    """The rows' owners, by request number; ``slots`` lists the numbers in the order that callers see."""

    slots: list[int] = field(default_factory=list)
    safe: list[int] = field(default_factory=list)
    arm: list[int] = field(default_factory=list)
    _next: int = 0

    def __len__(self) -> int:
        """S."""
        return len(self.slots)

    @property
    def rows(self) -> int:
        """S + A."""
        return len(self.safe) + len(self.arm)

    @property
    def safe_rows(self) -> list[int]:
        """Each slot's safe row."""
        where = {owner: row for row, owner in enumerate(self.safe)}
        return [where[slot] for slot in self.slots]

    @property
    def arm_rows(self) -> list[int | None]:
        """Each slot's ARM row, if it has one."""
        where = {owner: row for row, owner in enumerate(self.arm, len(self.safe))}
        return [where.get(slot) for slot in self.slots]

    @property
    def parents(self) -> list[int]:
        """The safe row of each ARM row's request, in the order of the ARM rows."""
        where = {owner: row for row, owner in enumerate(self.safe)}
        return [where[owner] for owner in self.arm]

    def join(self, guided: Sequence[bool]) -> list[Move]:
        """Add requests in the next slots; returns what their safe rows push out of the way, among ARM rows."""
        begin, new = len(self.safe), list(range(self._next, self._next + len(guided)))
        self._next += len(guided)
        pushed = min(len(new), len(self.arm))
        free = begin + max(len(new), len(self.arm))
        self.arm = self.arm[pushed:] + self.arm[:pushed]
        self.slots += new
        self.safe += new
        self.arm += [number for number, is_guided in zip(new, guided, strict=True) if is_guided]
        return [(begin + row, free + row) for row in range(pushed)]

    def keep(self, slots: Sequence[int]) -> Moves:
        """Drop all requests but those in these slots, which move up in their order."""
        self.slots = [self.slots[slot] for slot in slots]
        staying = set(self.slots)
        safe = {row: owner for row, owner in enumerate(self.safe) if owner in staying}
        arm = {row: owner for row, owner in enumerate(self.arm, len(self.safe)) if owner in staying}
        safe_moves = _close_gaps(safe, 0)
        arm_moves = _close_gaps(arm, len(safe))
        self.safe = [safe[row] for row in range(len(safe))]
        self.arm = [arm[row] for row in range(len(safe), len(safe) + len(arm))]
        return Moves(safe_moves, arm_moves)


def _close_gaps(owners: dict[int, int], begin: int) -> list[Move]:
    """Move rows (in place) so that they are those from ``begin`` on without a gap, touching as few as possible."""
    region = range(begin, begin + len(owners))
    outside = [row for row in owners if row not in region]
    moves = list(zip(outside, [row for row in region if row not in owners], strict=True))
    for source, target in moves:
        owners[target] = owners.pop(source)
    return moves
