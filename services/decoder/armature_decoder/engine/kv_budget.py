"""Whether requests fit beside each other: the bytes of their keys and values, before any is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armature.modeling.guided_batch import GuidedRequest
from armature.modeling.kv_memory import KvMemory


@dataclass(frozen=True)
class KvBudget:
    """At most ``limit`` bytes for all requests of a batch and those that join it."""

    memory: KvMemory
    limit: int

    def fits(self, running: Sequence[GuidedRequest], joining: Sequence[GuidedRequest]) -> bool:
        """Whether all of them can grow to their full length; prompts of those that join have caches of their own."""
        everyone = [*running, *joining]
        streams = sum(request.streams for request in everyone)
        batch = self.memory.needed(len(everyone), streams, max(request.length for request in everyone))
        prompts = sum(self.memory.needed(1, request.streams, len(request.prompt)) for request in joining)
        return batch + prompts <= self.limit
