"""What turns requests into tokens: the port through which the engine drives a batch, and who runs the model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from transformers import PreTrainedModel

from armature.inference.batch import Joining, Sampled
from armature.inference.lean.architecture import supports
from armature.inference.request import GuidedRequest


class Backend(Protocol):
    """A batch of running sequences, in slots 0 to ``len(batch) - 1``.

    A sequence's tokens must not depend on its neighbours. A method that raises leaves the batch as it was, except
    :meth:`step` and :meth:`keep`, after which only ``keep([])`` is allowed.
    """

    def __len__(self) -> int:
        """How many slots are taken."""

    def begin(self, requests: Sequence[GuidedRequest]) -> Joining:
        """New sequences, of whose prompts nothing is computed yet. They are not in the batch: to give up, drop them."""

    def advance(self, joining: Joining, tokens: int) -> int:
        """Compute about so many more tokens of the prompts, in all their streams; returns how many."""

    def join(self, joining: Joining) -> list[Sampled]:
        """Take new sequences into the next slots and return the first token of each."""

    def step(self) -> list[Sampled]:
        """The next token of every slot."""

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""


BackendName = Literal["auto", "hf", "lean"]


RUNS_LEAN: dict[BackendName, Callable[[PreTrainedModel], bool]] = {
    "auto": supports,
    "hf": lambda model: False,
    "lean": lambda model: True,
}
"""Whether a loaded model's weights go to the lean back end: the Llama family, an error for everything else. Otherwise
transformers runs it: any causal language model, and the reference for all others."""
