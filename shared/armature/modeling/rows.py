"""The port between sampling and a model: rows of running requests that give next-token logits.

:class:`armature.modeling.guided_batch.GuidedBatch` samples over whatever implements :class:`Rows`; how the streams are
laid out, cached and computed is the implementation's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from armature.errors import InvalidRequest

SCORED_AT_ONCE = 64
"""Positions of a prompt whose logits are in memory together when it is scored: a vocabulary is wide."""


class TwinLogits(NamedTuple):
    """Next-token logits of both streams in fp32, (S, V) each; ``arm`` repeats ``safe`` where a request has no ARM."""

    safe: torch.Tensor
    arm: torch.Tensor


class Rows(Protocol):
    """The running requests' streams, in slots 0 to S - 1. They join and leave between steps.

    A request's logits must not depend on its neighbours. A :meth:`join` that raises leaves the rows as they were.
    """

    def __len__(self) -> int:
        """S: the requests that have rows."""

    def join(self, prompts: Sequence[Sequence[int]], weights: Sequence[Sequence[float] | None]) -> TwinLogits:
        """Prefill new requests and put them into the next slots.

        Args:
            prompts: Token ids of each new request, at least one each.
            weights: Its preference (K,), or None for the safe stream alone.

        Returns:
            Logits for the first new token of the joiners only.

        Raises:
            InvalidRequest: A preference for a model without an adapter, or of the wrong length.
        """

    def score(self, prompt: Sequence[int], weights: Sequence[float] | None) -> Iterator[TwinLogits]:
        """Logits after every position of a prompt, in pieces (positions, V) one after the other. It takes no rows.

        Args:
            prompt: Token ids, at least one.
            weights: As for :meth:`join`.
        """

    def step(self, tokens: torch.Tensor) -> TwinLogits:
        """Feed each request's newest token (S,) to its streams and return the logits for the next one."""

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""


def check_preferences(weights: Sequence[Sequence[float] | None], attributes: int) -> None:
    """Refuse preferences that the adapter does not take.

    Raises:
        InvalidRequest: One does not have ``attributes`` weights, or the model has no adapter (0).
    """
    for weight in weights:
        if weight is not None and (not attributes or len(weight) != attributes):
            raise InvalidRequest(f"this model takes preferences of {attributes} weights", param="preference")
