"""The port between sampling and a model: rows of running requests that give next-token logits.

:class:`armature.inference.batch.GuidedBatch` samples over whatever implements :class:`Rows`; how the streams are
laid out, cached and computed is the implementation's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from armature.algorithms.guided_decoding import Mixture
from armature.errors import InvalidRequest


class TwinLogits(NamedTuple):
    """Next-token logits of both streams as the model gives them, (S, V) each; ``arm`` repeats ``safe`` without an ARM.

    They become float32 where they are sampled from.
    ``reference`` are those of the ARM's backbone without its adapter; None: they are the safe ones.
    """

    safe: torch.Tensor
    arm: torch.Tensor
    reference: torch.Tensor | None = None
    measured: torch.Tensor | None = None
    """The safe logits of the mixed slots that want them too (M, V), in the slots' order."""

    def select(self, rows: torch.Tensor | slice) -> TwinLogits:
        """Of these rows; what is measured stays."""
        reference = None if self.reference is None else self.reference[rows]
        return self._replace(safe=self.safe[rows], arm=self.arm[rows], reference=reference)


class Mixed(NamedTuple):
    """Of a slot's streams only their mixture is wanted: both its ``safe`` and its ``arm`` logits are that."""

    mixture: Mixture
    measured: bool = False
    """Whether the safe logits are wanted as well."""


class RowRequest(NamedTuple):
    """What decides a new request's streams."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    preference: Sequence[float] | None = None
    """Of its ARM stream (K,); None: the safe stream alone."""
    cache_scope: str | None = None
    """Whoever may see how fast it is: prefixes are shared within a scope only. None: with nobody."""
    every_position: bool = False
    """Whether logits are wanted after every position of the prompt; such a request begins alone and shares nothing."""
    arm_prompt: Sequence[int] = ()
    """As an ARM on a model of its own reads it; empty: as the base does. An ARM on the base does not look at it."""


class Prefill(Protocol):
    """New requests whose prompts are being computed. Nothing of them is among the rows: to give up, drop it."""

    @property
    def remaining(self) -> int:
        """How many positions the longest prompt still needs."""

    @property
    def logits(self) -> TwinLogits:
        """For the first new token of each request, once nothing remains."""

    @property
    def newest(self) -> TwinLogits:
        """After each position of the newest advance (T, V), for a request that wants every position."""

    def advance(self, tokens: int) -> int:
        """Compute at most so many more tokens over all streams, and at least one position of each; returns how many."""


class Rows(Protocol):
    """The running requests' streams, in slots 0 to S - 1. They join and leave between steps.

    A request's logits must not depend on its neighbours. A :meth:`join` that raises leaves the rows as they were.
    """

    @property
    def mixes(self) -> bool:
        """Whether a step mixes a slot's streams for less than it takes to tell them apart."""

    def __len__(self) -> int:
        """S: the requests that have rows."""

    def begin(self, requests: Sequence[RowRequest]) -> Prefill:
        """New requests, of whose prompts nothing is computed yet.

        Raises:
            InvalidRequest: A preference for a model without an adapter, or of the wrong length.
        """

    def join(self, prefill: Prefill) -> None:
        """Put requests of whose prompts nothing remains into the next slots."""

    def step(self, tokens: torch.Tensor, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """Feed each request's newest token (S,) to its streams and return the logits for the next one.

        Args:
            tokens: Of the slots.
            mixed: How each slot's streams are mixed, None: not at all; empty: nobody's are. Rows that do not mix
                (:attr:`mixes`) do not look at it.
        """

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""


def check_preferences(requests: Sequence[RowRequest], attributes: int) -> None:
    """Refuse preferences that the adapter does not take.

    Raises:
        InvalidRequest: One does not have ``attributes`` weights, or the model has no adapter (0).
    """
    for request in requests:
        weights = request.preference
        if weights is not None and (not attributes or len(weights) != attributes):
            raise InvalidRequest(f"this model takes preferences of {attributes} weights", param="preference")
