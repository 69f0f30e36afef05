"""The duration of an engine's steps, and from it the cost of guidance in service."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Literal

from armature.inference.request import GuidedRequest

GuidedShare = Literal["none", "some", "all"]
"""Which of a step's requests are guided."""


@dataclass
class StepClock:
    """Mean seconds of a step by its number of requests, and by whether none, some or all are guided."""

    _seconds: dict[tuple[int, GuidedShare], float] = field(default_factory=lambda: defaultdict(float))
    _steps: Counter[tuple[int, GuidedShare]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stepped(self, requests: Sequence[GuidedRequest], seconds: float) -> GuidedShare:
        """Count a step; return how many of its requests are guided."""
        guided = sum(request.active_guide is not None for request in requests)
        kind: GuidedShare = "none" if not guided else "all" if guided == len(requests) else "some"
        with self._lock:
            self._seconds[len(requests), kind] += seconds
            self._steps[len(requests), kind] += 1
        return kind

    @property
    def guided_overhead(self) -> float | None:
        """Guided over unguided time of steps of one size, as a mean over sizes; None: none has both kinds.

        Each size is weighted by the count of the rarer of its two kinds of steps.
        """
        ratios, weights = [], []
        with self._lock:
            for size in {size for size, _ in self._steps}:
                if all((size, kind) in self._steps for kind in ("all", "none")):
                    guided, plain = (self._seconds[size, kind] / self._steps[size, kind] for kind in ("all", "none"))
                    ratios.append(guided / plain)
                    weights.append(min(self._steps[size, "all"], self._steps[size, "none"]))
        return sum(map(mul, weights, ratios)) / sum(weights) if ratios else None
