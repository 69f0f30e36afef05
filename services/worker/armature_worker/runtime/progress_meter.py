"""From a recipe's (phase, step, total) to the share of the whole job that is done, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from armature.db.jobs import Position


class ProgressMeter:
    """Measures one attempt.

    Args:
        phases: The job's phases in order, each with its weight: about the share of the time that it takes. A phase that
            a job leaves out counts as done when a later one begins; one that is not listed, such as a measurement in
            between, moves nothing.
        clock: Seconds that only grow.
    """

    def __init__(self, phases: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._phases = phases
        self._clock = clock
        self._total = sum(phases.values())
        self._percent = 0.0
        self._began: dict[str, tuple[int, float]] = {}
        self._left: float | None = None

    def measure(self, phase: str, step: int, total_steps: int) -> Position:
        """Where the attempt is now; ``percent`` never goes back."""
        if phase in self._phases:
            done = step / total_steps if total_steps else 0.0
            percent = 100 * (self._before(phase) + self._phases[phase] * done) / self._total
            self._percent = max(self._percent, percent)
            self._left = self._time_left(phase, step, total_steps)
        return Position(phase, step, total_steps, self._percent, self._left)

    def _time_left(self, phase: str, step: int, total_steps: int) -> float | None:
        """At this phase's own pace, which tells by its weight how long the phases after it take."""
        now = self._clock()
        first, began = self._began.setdefault(phase, (step, now))
        if step <= first:
            return None
        per_step = (now - began) / (step - first)
        after = self._total - self._before(phase) - self._phases[phase]
        return per_step * (total_steps - step + total_steps * after / self._phases[phase])

    def _before(self, phase: str) -> float:
        names = list(self._phases)
        return sum(self._phases[name] for name in names[: names.index(phase)])
