"""Requests below an instruction: one row more each, in the same batch.

The instructed stream is a safe stream with a prompt of its own, so whatever runs rows runs it too. Both contexts of a
request go on with the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from armature.inference.runner import Mixed, Prefill, RowRequest, Rows, TwinLogits


class InstructedRequest(NamedTuple):
    """A request's own streams, and the prompt of its instructed one, if it has one."""

    row: RowRequest
    instructed: Sequence[int] | None = None


class InstructedLogits(NamedTuple):
    """Next-token logits of S requests, and those below the instruction (S, V): the safe ones where there is none.

    ``instructed`` is None if nobody has an instruction.
    """

    twin: TwinLogits
    instructed: torch.Tensor | None = None

    def select(self, rows: slice, *, instructed: bool) -> InstructedLogits:
        """Those of some requests; ``instructed``: whether any of these has an instruction."""
        below = self.instructed[rows] if instructed and self.instructed is not None else None
        return InstructedLogits(self.twin.select(rows), below)


class InstructedRows:
    """The running requests, over rows of which one with an instruction takes two slots. Otherwise as :class:`Rows`."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self._layout = _Layout.of([], device)

    @property
    def mixes(self) -> bool:
        """Whether the rows do."""
        return self._rows.mixes

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._layout.instructed)

    def begin(self, requests: Sequence[InstructedRequest]) -> InstructedPrefill:
        """New requests, of whose prompts nothing is computed yet; raises what :meth:`Rows.begin` does."""
        layout = _Layout.of([request.instructed is not None for request in requests], self._device)
        return InstructedPrefill(self._rows.begin([row for request in requests for row in _rows_of(request)]), layout)

    def join(self, prefill: InstructedPrefill) -> None:
        """Put requests of whose prompts nothing remains into the next slots."""
        self._rows.join(prefill.rows)
        self._layout = _Layout.of(self._layout.instructed + prefill.layout.instructed, self._device)

    def step(self, tokens: torch.Tensor, mixed: Sequence[Mixed | None] = ()) -> InstructedLogits:
        """As :meth:`Rows.step`; streams of who has an instruction are not mixed."""
        return self._layout.gather(self._rows.step(self._layout.spread(tokens), self._layout.spread_mixed(mixed)))

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""
        self._rows.keep(self._layout.rows_of(slots))
        self._layout = _Layout.of([self._layout.instructed[slot] for slot in slots], self._device)


@dataclass(frozen=True)
class InstructedPrefill:
    """As :class:`armature.inference.runner.Prefill`, of requests some of which have an instruction."""

    rows: Prefill
    layout: _Layout

    @property
    def remaining(self) -> int:
        """How many positions the longest prompt still needs."""
        return self.rows.remaining

    @property
    def logits(self) -> InstructedLogits:
        """For the first new token of each request, once nothing remains."""
        return self.layout.gather(self.rows.logits)

    @property
    def newest(self) -> TwinLogits:
        """After each position of the newest advance, for a request that wants every position and no instruction."""
        return self.rows.newest

    def advance(self, tokens: int) -> int:
        """Compute at most so many more tokens over all streams, and at least one position of each; returns how many."""
        return self.rows.advance(tokens)


@dataclass(frozen=True)
class _Layout:
    """Which requests are ``instructed``, and the rows' slots: each request's ``plain`` one (S,), the one of its
    instructed stream ``below`` (S,), which is the plain one if it has none, and whose token each is fed, ``feeds``."""

    instructed: list[bool]
    plain: torch.Tensor
    below: torch.Tensor
    feeds: torch.Tensor

    @classmethod
    def of(cls, instructed: list[bool], device: torch.device) -> _Layout:
        counts = torch.tensor(instructed, device=device).long() + 1
        below = counts.cumsum(0) - 1
        feeds = torch.arange(len(instructed), device=device).repeat_interleave(counts)
        return cls(instructed, below - counts + 1, below, feeds)

    def spread(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[self.feeds] if any(self.instructed) else tokens

    def spread_mixed(self, mixed: Sequence[Mixed | None]) -> Sequence[Mixed | None]:
        if not (mixed and any(self.instructed)):
            return mixed
        return [one for both in zip(mixed, self.instructed, strict=True) for one in [both[0], *[None] * both[1]]]

    def gather(self, logits: TwinLogits) -> InstructedLogits:
        if not any(self.instructed):
            return InstructedLogits(logits)
        return InstructedLogits(logits.select(self.plain), logits.safe[self.below])

    def rows_of(self, slots: Sequence[int]) -> list[int]:
        plain = self.plain.tolist()
        return [row for slot in slots for row in range(plain[slot], plain[slot] + 1 + self.instructed[slot])]


def _rows_of(request: InstructedRequest) -> list[RowRequest]:
    if request.instructed is None:
        return [request.row]
    return [request.row, request.row._replace(prompt=request.instructed, preference=None)]
