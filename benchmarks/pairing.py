"""Paired measurement: contenders take turns, and only ratios within a turn count.

Other work on the machine slows neighbours in time alike, so the ratio of two turns of one round says more than any
absolute time; the quartiles over the rounds say how much more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

Contender = Callable[[], list[float]]
"""Runs once and returns the seconds that each of its steps took."""
Times = dict[str, list[float]]
"""Seconds per step of each contender, by round."""


def take_turns(contenders: Mapping[str, Contender], rounds: int) -> Times:
    """Run every contender once unmeasured, then ``rounds`` times in an order that rotates."""
    names = list(contenders)
    for run in contenders.values():
        run()
    times: Times = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(statistics.median(contenders[name]()))
    return times


def ratio(times: Times, over: str, under: str) -> float:
    """The median over the rounds of one contender's time over another's."""
    return round(statistics.median(_ratios(times, over, under)), 4)


def spread(times: Times, over: str, under: str) -> list[float]:
    """The quartiles of that ratio."""
    ratios = _ratios(times, over, under)
    if len(ratios) < 2:
        return [round(ratios[0], 4)] * 2
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]


def p95(seconds: Sequence[float]) -> float:
    """The time that 19 of 20 stay below."""
    return percentile(seconds, 95)


def percentile(seconds: Sequence[float], percent: int) -> float:
    """The time that so many of a hundred stay below, interpolated linearly."""
    if len(seconds) < 2:
        return seconds[0]
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


def _ratios(times: Times, over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(times[over], times[under], strict=True)]
