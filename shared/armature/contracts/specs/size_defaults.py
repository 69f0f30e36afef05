"""Learning rates and steps where a spec leaves them null, by the size of the model that is trained.

One row per method and size; docs/methods/harm_vector.md and docs/methods/arm.md say where the values come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Method = Literal["harm_full", "harm_lora", "arm"]


class SizeDefaults(NamedTuple):
    """Defaults for models of at most ``parameters``."""

    parameters: float
    learning_rate: float
    steps: int


class Schedule(NamedTuple):
    """What a job trains with: a learning rate and a number of steps."""

    learning_rate: float
    steps: int


_TINY, _SMALL, _LARGE, _ANY = 1e7, 1e9, 1e10, float("inf")

SIZE_DEFAULTS: dict[Method, Sequence[SizeDefaults]] = {
    "harm_full": (
        SizeDefaults(_TINY, 1e-3, 20),
        SizeDefaults(_SMALL, 2e-5, 32),
        SizeDefaults(_LARGE, 1e-5, 32),
        SizeDefaults(_ANY, 5e-6, 32),
    ),
    "harm_lora": (
        SizeDefaults(_TINY, 1e-3, 20),
        SizeDefaults(_SMALL, 3e-4, 32),
        SizeDefaults(_LARGE, 2e-4, 32),
        SizeDefaults(_ANY, 1e-4, 32),
    ),
    "arm": (
        SizeDefaults(_TINY, 3e-3, 250),
        SizeDefaults(_SMALL, 1e-3, 250),
        SizeDefaults(_LARGE, 5e-4, 250),
        SizeDefaults(_ANY, 2e-4, 250),
    ),
}


def size_defaults(method: Method, parameters: int) -> SizeDefaults:
    """Return the row of the table for a model of so many parameters."""
    return next(row for row in SIZE_DEFAULTS[method] if parameters <= row.parameters)


def fewest_steps(method: Method) -> int:
    """Return the fewest steps that a model of any size gets."""
    return min(row.steps for row in SIZE_DEFAULTS[method])
