"""A request on its way through the engine, and its events: token ids only, no text, no HTTP."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from armature.errors import ArmatureError
from armature.inference.batch import Joining
from armature.inference.prefix_cache import BLOCK_TOKENS
from armature.inference.request import GuidedRequest
from armature.inference.sampler import FinishReason, Sampled

_ids = itertools.count(1)


@dataclass(frozen=True)
class Failed:
    """The last event of a request that could not be finished."""

    error: ArmatureError


@dataclass(frozen=True)
class PromptScored:
    """The scores of each token of the prompt but the first, if asked for. It comes before the first token.

    With a finish reason it is the last event.
    """

    tokens: Sequence[Sampled]
    finish_reason: FinishReason | None


Event = PromptScored | Sampled | Failed
"""A scored prompt, a token (the last one has a finish reason), or a failure."""

Sink = Callable[[Event], None]
"""Receives every event on the engine's thread; must not block."""


@dataclass(eq=False)
class EngineRequest:
    """One sequence to generate for one tenant, and the sink of its events.

    ``began`` is when the engine began to prefill it (monotonic seconds); 0: not yet.
    """

    tenant: str
    sequence: GuidedRequest
    sink: Sink
    id: int = field(default_factory=_ids.__next__)
    began: float = 0.0

    def gains_from(self, other: EngineRequest) -> bool:
        """Tell whether waiting for ``other``'s prefill costs this request less than the cache hits save it.

        That is so where it shares at least half of that prompt.
        """
        own, theirs = self.sequence, other.sequence
        if own.namespace is None or own.namespace != theirs.namespace or own.score_prompt or theirs.score_prompt:
            return False
        shared = max(BLOCK_TOKENS, (len(theirs.prompt) + 1) // 2)
        return len(own.prompt) > shared and own.prompt[:shared] == theirs.prompt[:shared]


@dataclass(eq=False)
class Cohort:
    """Requests that prefill and join the batch together; ``joining`` is None until that begins."""

    requests: list[EngineRequest]
    joining: Joining | None = None

    def gains_from(self, other: Cohort) -> bool:
        """Tell whether each of its requests gains from waiting for one of ``other``'s."""
        return all(any(request.gains_from(one) for one in other.requests) for request in self.requests)
