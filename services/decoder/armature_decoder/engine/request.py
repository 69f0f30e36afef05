"""What the engine is asked for and what it tells back. Token ids only: text and HTTP live further out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from armature.errors import ArmatureError
from armature.inference.batch import FinishReason, Joining, Sampled
from armature.inference.prefix_cache import BLOCK_TOKENS
from armature.inference.request import GuidedRequest

_ids = itertools.count(1)


@dataclass(frozen=True)
class Failed:
    """The last event of a request that could not be finished."""

    error: ArmatureError


@dataclass(frozen=True)
class PromptScored:
    """What the model thinks of each token of the prompt but the first. Comes before the first token, if asked for.

    With a finish reason nothing comes after it.
    """

    tokens: Sequence[Sampled]
    finish_reason: FinishReason | None


Event = PromptScored | Sampled | Failed
"""A scored prompt, a token (the last one has a finish reason), or a failure."""

Sink = Callable[[Event], None]
"""Called on the engine's thread for every event; must not block."""


@dataclass(eq=False)
class EngineRequest:
    """One sequence to generate, for one tenant, and where its tokens go.

    ``began`` is when the engine began with its prompt (monotonic seconds); 0: it has not.
    """

    tenant: str
    sequence: GuidedRequest
    sink: Sink
    id: int = field(default_factory=_ids.__next__)
    began: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens to be computed before its first one, in all its streams."""
        return self.sequence.prompt_tokens

    def gains_from(self, other: EngineRequest) -> bool:
        """Whether it is better off once the other's prompt is computed and known.

        They share half of that prompt at least: so what it need not compute is no less than what it waits for.
        """
        mine, theirs = self.sequence, other.sequence
        if (
            mine.cache_scope is None
            or mine.cache_scope != theirs.cache_scope
            or mine.score_prompt
            or theirs.score_prompt
        ):
            return False
        shared = max(BLOCK_TOKENS, (len(theirs.prompt) + 1) // 2)
        return len(mine.prompt) > shared and mine.prompt[:shared] == theirs.prompt[:shared]


@dataclass(eq=False)
class Cohort:
    """Requests that enter the batch together, and what is computed of their prompts once that has begun."""

    requests: list[EngineRequest]
    joining: Joining | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything of its prompts is computed."""
        return self.joining is not None

    def gains_from(self, other: Cohort) -> bool:
        """Whether each of its requests is better off once the other's prompts are known."""
        return all(any(request.gains_from(one) for one in other.requests) for request in self.requests)
