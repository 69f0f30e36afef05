"""The port between sampling and a model: streams in rows, a forward pass per token, logits by row.

:class:`armature.inference.batch.GuidedBatch` samples over whatever implements :class:`ModelRunner`. Layout, caches and
kernels belong to the implementation: :mod:`armature.inference.lean`, :mod:`armature.inference.transformers`, and
:class:`armature.inference.grouped.GroupedRunner` over one runner per model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

from armature.errors import InvalidRequest
from armature.inference.stream import Stream

State = TypeVar("State")


class Read(NamedTuple):
    """One row of the logits that a decode returns: ``weight z[row] + other_weight z[other]``.

    Without ``other`` the row's own logits, to the bit. Two rows are combined only by a runner that
    :attr:`~ModelRunner.combines`. A combination that is not finite is the first row's own logits: an ARM that overflows
    has no say, and the safe model decides.
    """

    row: int
    other: int | None = None
    weight: float = 1.0
    other_weight: float = 0.0


@dataclass(eq=False)
class Prefill(Generic[State]):
    """Streams whose prompts are being computed, in caches of their own. To abandon them, drop the object.

    Args:
        streams: The new streams.
        state: What the runner keeps of them until they join.
        remaining: Positions that the longest prompt still needs.
        every_position: Whether logits are wanted after every position of the prompts.
        logits: After each stream's prompt (n, V), once nothing remains.
        newest: After each position of the newest piece (n, T, V), where every position is wanted.
    """

    streams: Sequence[Stream]
    state: State
    remaining: int
    every_position: bool = False
    logits: torch.Tensor | None = None
    newest: torch.Tensor | None = None


class ModelRunner(Protocol):
    """Runs streams, one per row, rows 0 to R - 1 in the order in which they joined.

    A row's logits must not depend on its neighbours. Token ids and logits only: sampling lives in the batch.
    """

    @property
    def combines(self) -> bool:
        """Whether a decode combines two rows (:class:`Read`) for less than it takes to return both."""

    def __len__(self) -> int:
        """R, the number of rows."""

    def prefill(self, streams: Sequence[Stream], *, every_position: bool = False) -> Prefill[Any]:
        """Begin with new streams; nothing of their prompts is computed yet.

        Args:
            streams: They will join together. A stream's parent is among them.
            every_position: Return logits after every position (for one request; the prefix cache is not used).

        Raises:
            InvalidRequest: A preference on a model without an adapter, or of the wrong length.
        """

    def extend(self, prefill: Prefill[Any], tokens: int) -> int:
        """Compute about ``tokens`` more tokens of the prompts, at least one of each, and return their number."""

    def join(self, prefill: Prefill[Any]) -> None:
        """Move streams of which nothing remains into the next rows. If that raises, the rows are as before.

        If not even that can be had, no row is left, and :meth:`decode` raises.
        """

    def decode(self, tokens: torch.Tensor, reads: Sequence[Read] | None = None) -> torch.Tensor:
        """Feed every row its newest token (R,) and return logits for the next one, (reads, V).

        Args:
            tokens: One id per row. A stream and its parent are fed the same.
            reads: The logits wanted; None: those of every row, in order.
        """

    def evict(self, rows: Sequence[int]) -> None:
        """Free these rows; the others move up in their order."""

    def clear(self) -> None:
        """Free all rows, in whatever state a failure has left them."""


def single_rows(reads: Sequence[Read]) -> list[int]:
    """List the rows of reads, for a runner that combines none.

    Raises:
        ValueError: A read combines two rows.
    """
    if any(read.other is not None for read in reads):
        raise ValueError("this runner combines no rows")
    return [read.row for read in reads]


def check_preferences(streams: Sequence[Stream], attributes: int) -> None:
    """Refuse preferences that the adapter does not take.

    Raises:
        InvalidRequest: A preference does not have ``attributes`` weights, or the model has no adapter (0).
    """
    for stream in streams:
        if stream.preference is not None and (not attributes or len(stream.preference) != attributes):
            raise InvalidRequest(f"this model takes preferences of {attributes} weights", param="preference")


def staying(rows: int, evicted: Sequence[int]) -> list[int]:
    """List the rows out of ``rows`` that are not evicted."""
    gone = set(evicted)
    return [row for row in range(rows) if row not in gone]
