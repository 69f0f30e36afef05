"""Whether requests fit beside each other: the bytes of their keys and values, before any is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armature.inference.kv_memory import KvMemory
from armature.inference.request import GuidedRequest


@dataclass(frozen=True)
class KvBudget:
    """At most ``limit`` bytes for all requests of a batch and those that join it."""

    memory: KvMemory
    limit: int

    def fits(self, running: Sequence[GuidedRequest], joining: Sequence[GuidedRequest]) -> bool:
        """Whether all of them can grow to their full length."""
        return self.needed(running, joining) <= self.limit

    def needed(self, running: Sequence[GuidedRequest], joining: Sequence[GuidedRequest]) -> int:
        """Bytes of all of them at their full length; prompts of those that join have caches of their own."""
        everyone = [*running, *joining]
        contexts, streams = sum(one.contexts for one in everyone), sum(one.streams for one in everyone)
        batch = self.memory.needed(contexts, streams, max((request.length for request in everyone), default=0))
        return batch + sum(map(self._own_cache, joining))

    def context_of(self, request: GuidedRequest) -> int:
        """Positions that a stream of it may come to have while it is alone, with prompts as long as they are."""
        return self.memory.longest(request.contexts, request.streams, self.limit - self._own_cache(request))

    def _own_cache(self, request: GuidedRequest) -> int:
        """What its prompts take while they are computed."""
        return self.memory.needed(request.contexts, request.streams, request.longest_prompt)
