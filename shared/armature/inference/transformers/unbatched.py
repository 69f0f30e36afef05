"""Requests that share no forward pass: for models that compute a sequence by how long its neighbours are.

Rotary frequencies that move with the length (``dynamic``, ``longrope``) are those of the longest sequence of a batch in
transformers, and ``dynamic`` ones stay for shorter sequences that come after it. So each request is computed alone, its
prompt whole, and what a forward pass before it has left behind is forgotten.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from armature.inference.runner import Mixed, Prefill, RowRequest, Rows, TwinLogits


class ApartRows:
    """Implements :class:`armature.inference.runner.Rows` with rows of its own for every request.

    Args:
        model: The model that they run.
        start: Makes empty rows of it.
    """

    mixes = False
    """As the rows that it is made of."""

    def __init__(self, model: PreTrainedModel, start: Callable[[], Rows]) -> None:
        self._start = start
        self._rows: list[Rows] = []
        self._rotary = [module for module in model.modules() if hasattr(module, "max_seq_len_cached")]

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._rows)

    def begin(self, requests: Sequence[RowRequest]) -> ApartPrefill:
        """New requests; see :meth:`armature.inference.runner.Rows.begin`."""
        rows = [self._start() for _ in requests]
        begun = [one.begin([request]) for one, request in zip(rows, requests, strict=True)]
        return ApartPrefill(rows, begun, self._forget_lengths, in_pieces=requests[0].every_position)

    def join(self, prefill: Prefill) -> None:
        """Add the rows of new requests."""
        assert isinstance(prefill, ApartPrefill)
        for rows, begun in zip(prefill.rows, prefill.begun, strict=True):
            rows.join(begun)
        self._rows += prefill.rows

    def step(self, tokens: torch.Tensor, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """Feed each request's newest token (S,) to its rows, one request after the other."""
        logits = []
        for rows, token in zip(self._rows, tokens[:, None], strict=True):
            self._forget_lengths()
            logits.append(rows.step(token))
        return _stack(logits)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop the rows of all requests but these, which move up in their order."""
        self._rows = [self._rows[slot] for slot in slots]

    def _forget_lengths(self) -> None:
        for module in self._rotary:
            module.max_seq_len_cached = 0  # the next forward pass takes the frequencies of its own length


@dataclass(frozen=True)
class ApartPrefill:
    """Implements :class:`armature.inference.runner.Prefill`, a prompt after the other.

    ``in_pieces``: the logits of every position are wanted, which would not fit side by side.
    """

    rows: list[Rows]
    begun: list[Prefill]
    forget_lengths: Callable[[], None]
    in_pieces: bool

    @property
    def remaining(self) -> int:
        """How many positions the longest prompt still needs."""
        return max(one.remaining for one in self.begun)

    @property
    def logits(self) -> TwinLogits:
        """For the first new token of each request."""
        return _stack([one.logits for one in self.begun])

    @property
    def newest(self) -> TwinLogits:
        """After each position of the newest advance, of the one request."""
        return self.begun[0].newest

    def advance(self, tokens: int) -> int:
        """Compute the next prompt whole; returns how many tokens it took."""
        unfinished = next(one for one in self.begun if one.remaining)
        self.forget_lengths()
        return unfinished.advance(tokens if self.in_pieces else sys.maxsize)


def _stack(logits: Sequence[TwinLogits]) -> TwinLogits:
    return TwinLogits(torch.cat([one.safe for one in logits]), torch.cat([one.arm for one in logits]))
