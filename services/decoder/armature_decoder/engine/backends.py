"""What turns requests into tokens. The engine drives any back end through this port; a new one is a row here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from armature.modeling.guided_batch import GuidedBatch, GuidedModel, GuidedRequest, Sampled


class Backend(Protocol):
    """A batch of running sequences, in slots 0 to ``len(batch) - 1``.

    A sequence's tokens must not depend on its neighbours. A method that raises leaves the batch as it was, except
    :meth:`step`, after which only ``keep([])`` is allowed.
    """

    def __len__(self) -> int:
        """How many slots are taken."""

    def join(self, requests: Sequence[GuidedRequest]) -> list[Sampled]:
        """Take new sequences into the next slots and return the first token of each."""

    def step(self) -> list[Sampled]:
        """The next token of every slot."""

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""


BackendName = Literal["hf"]

BACKENDS: dict[BackendName, Callable[[GuidedModel], Backend]] = {"hf": GuidedBatch}
"""``hf``: any causal language model of transformers; the reference for all others."""
