"""The points of a sweep as figures: what was measured at each, which one is the knee, and a table of all.

The rule: among the points whose upper ends of both 95 % intervals stay within the goal, the knee is the one that
changes the fewest weights; of those that change equally many, the one with the smallest ``scale * ||v_m||``, then the
first of the grid. Nothing here loads a model, so a rule can be tried on points made up.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from armature.contracts.base import Contract
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec, Layers, SweepGoal, SweepGrid, SweptRule

CONTROLS = ("random", "permuted", "random_sign")


class Interval(Contract):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Source(Contract):
    """Which vector a point subtracts."""

    rule: SweptRule
    layers: Layers
    density: float


class Point(Contract):
    """One edit of the base and what it does; ``source`` is None for the base itself.

    A control has the source and the scale of the point that it is a control of.
    """

    source: Source | None
    control: str | None
    scale: float
    kept: int
    edit_norm: float
    asr: Interval
    asr_or_degenerate: Interval
    refusal: float
    degenerate: float
    nll: float
    nll_rise: Interval


def grid_sources(grid: SweepGrid) -> Iterator[Source]:
    """The vectors of a grid; those that share a ranking follow each other."""
    for rule in grid.rules:
        for layers in grid.layers:
            for density in grid.densities:
                yield Source(rule=rule, layers=layers, density=density)


def grid_points(points: Sequence[Point]) -> list[Point]:
    """Without the base and the controls."""
    return [point for point in points if point.source and not point.control]


def reaches(point: Point, goal: SweepGoal) -> bool:
    """Whether both upper ends stay within the goal."""
    return point.asr_or_degenerate.high <= goal.max_asr and point.nll_rise.high <= goal.max_nll_rise


def is_hopeless(point: Point, goal: SweepGoal) -> bool:
    """Whether the NLL has surely risen beyond the goal; a larger scale of the same vector is then not tried."""
    return point.nll_rise.low > goal.max_nll_rise


def find_knee(points: Sequence[Point], goal: SweepGoal) -> Point | None:
    """The sparsest edit that reaches the goal, or None."""
    return min((point for point in points if reaches(point, goal)), key=_size, default=None)


def find_best(points: Sequence[Point], goal: SweepGoal) -> Point:
    """The knee; where there is none, the lowest attack success among the points that keep the NLL, or among all."""
    knee = find_knee(points, goal)
    if knee is not None:
        return knee
    keeping = [point for point in points if point.nll_rise.high <= goal.max_nll_rise]
    return min(keeping or points, key=lambda point: (point.asr_or_degenerate.high, *_size(point)))


def pruned_edits(points: Sequence[Point], spec: HarmVectorSweepSpec) -> list[tuple[Source, float]]:
    """What of the grid was not measured."""
    measured = {(_key(point.source), point.scale) for point in grid_points(points) if point.source}
    return [
        (source, scale)
        for source in grid_sources(spec.grid)
        for scale in sorted(spec.grid.scales)
        if (_key(source), scale) not in measured
    ]


def as_csv(points: Sequence[Point]) -> str:
    """One line per point, intervals as three columns."""
    rows = [_as_row(point) for point in points]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_row(point: Point) -> dict[str, object]:
    row: dict[str, object] = {}
    for name in Source.model_fields:
        value = getattr(point.source, name, None)
        row[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    for name, value in point:
        if isinstance(value, Interval):
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif name != "source":
            row[name] = value
    return row


def _size(point: Point) -> tuple[int, float]:
    """How much an edit changes. The norm alone would always favour the whole difference, whose direction it is."""
    return point.kept, point.edit_norm


def _key(source: Source) -> str:
    return source.model_dump_json()
