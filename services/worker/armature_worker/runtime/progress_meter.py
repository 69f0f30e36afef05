"""Turn a recipe's (phase, step, total) into the percentage of the whole job and the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from armature.db.jobs import Position


class ProgressMeter:
    """The progress of one attempt.

    Args:
        phases: The job's phases in order, each weighted by about its share of the job's time. A phase that a job skips
            counts as done once a later one begins. A phase that is not listed, such as a validation, changes nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, phases: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._phases = phases
        self._clock = clock
        self._total = sum(phases.values())
        self._percent = 0.0
        self._began: dict[str, tuple[int, float]] = {}
        self._eta: float | None = None

    def measure(self, phase: str, step: int, total_steps: int) -> Position:
        """Return the attempt's position; ``percent`` never decreases."""
        if phase in self._phases:
            done = step / total_steps if total_steps else 0.0
            percent = 100 * (self._before(phase) + self._phases[phase] * done) / self._total
            self._percent = max(self._percent, percent)
            self._eta = self._remaining_seconds(phase, step, total_steps)
        return Position(phase, step, total_steps, self._percent, self._eta)

    def _remaining_seconds(self, phase: str, step: int, total_steps: int) -> float | None:
        """Extrapolate this phase's pace; later phases take time in proportion to their weights."""
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
