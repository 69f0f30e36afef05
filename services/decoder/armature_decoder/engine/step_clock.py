"""The duration of an engine's steps, and from it the cost of guidance in service."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from armature.inference.request import GuidedRequest

Guidance = Literal["none", "some", "all"]
"""Which of a step's requests are guided."""


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        return self.total / self.count


@dataclass
class StepClock:
    """Mean seconds of a step by its number of requests and by how many of them are guided: none, some or all."""

    _means: dict[tuple[int, Guidance], _Mean] = field(default_factory=lambda: defaultdict(_Mean))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stepped(self, requests: Sequence[GuidedRequest], seconds: float) -> Guidance:
        """Count a step; return how many of its requests are guided."""
        guided = sum(request.active_guide is not None for request in requests)
        kind: Guidance = "none" if not guided else "all" if guided == len(requests) else "some"
        with self._lock:
            mean = self._means[len(requests), kind]
            mean.total, mean.count = mean.total + seconds, mean.count + 1
        return kind

    @property
    def guided_overhead(self) -> float | None:
        """Guided over unguided time of steps of the same size, as a mean over sizes; None until a size has both kinds.

        Each size is weighted by the count of the rarer of its two kinds of steps.
        """
        with self._lock:
            pairs = [
                (self._means[size, "all"], mean)
                for (size, kind), mean in list(self._means.items())
                if kind == "none" and (size, "all") in self._means
            ]
            weights = [min(guided.count, plain.count) for guided, plain in pairs]
            ratios = [guided.value / plain.value for guided, plain in pairs]
        return sum(w * r for w, r in zip(weights, ratios, strict=True)) / sum(weights) if pairs else None
