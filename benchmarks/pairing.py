"""Paired measurement: contenders run in turns, and only ratios within a round count.

Other work on the machine slows runs that are close in time alike, so the ratio of two runs of one round is steadier
than any absolute time. The quartiles over the rounds show how steady.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

Contender = Callable[[], list[float]]
"""Runs once and returns the seconds of each of its steps."""
Times = dict[str, list[float]]
"""Median seconds of a step, by contender and round."""


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
    """Median over the rounds of the time of ``over`` divided by the time of ``under``."""
    return round(statistics.median(_ratios(times, over, under)), 4)


def spread(times: Times, over: str, under: str) -> list[float]:
    """Lower and upper quartile over the rounds of the ratio of :func:`ratio`."""
    ratios = _ratios(times, over, under)
    if len(ratios) < 2:
        return [round(ratios[0], 4)] * 2
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]


def p95(seconds: Sequence[float]) -> float:
    """95th percentile of the times."""
    return percentile(seconds, 95)


def percentile(seconds: Sequence[float], percent: int) -> float:
    """Percentile of the times, interpolated linearly."""
    if len(seconds) < 2:
        return seconds[0]
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


def _ratios(times: Times, over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(times[over], times[under], strict=True)]
