"""A stream: one sequence that one model reads, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ModelName = Literal["base", "arm"]
"""Which of a guided model's models reads a stream: the base, or the ARM's own where it has one."""

Role = Literal["safe", "reference", "arm", "instructed"]
"""What a request combines a stream's distribution as (docs/decoder.md, "Engine")."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A token sequence under one model and preference: a row of every forward pass while its request runs.

    Args:
        prompt: Token ids, at least one.
        preference: The adapter's preference (K,). None: the adapter is off.
        model: The model that reads it.
        parent: The stream without the adapter, on the same model and prompt, that this one branches from. Layers below
            the adapter are computed once for both (late split). A stream with a preference has one, directly before it.
        namespace: Prefix-cache namespace (the tenant). Hits are visible through latency, so nothing is shared across
            namespaces. None: no caching.
    """

    prompt: Sequence[int]
    preference: Sequence[float] | None = None
    model: ModelName = "base"
    parent: Stream | None = None
    namespace: str | None = None

    def guided(self, preference: Sequence[float]) -> Stream:
        """Branch off a stream with the adapter on under ``preference``."""
        return Stream(self.prompt, preference, self.model, parent=self, namespace=self.namespace)
