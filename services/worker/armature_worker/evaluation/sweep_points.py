"""The measured points of a sweep, the choice of the knee among them, and their CSV table.

The rule: of the points whose 95 % intervals end within the goal, the knee changes the fewest weights; among equals it
has the smallest ``scale * ||v_m||``, then it is the first of the grid. Nothing here loads a model.
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
    """The selection that makes a point's vector."""

    rule: SweptRule
    layers: Layers
    density: float


class Point(Contract):
    """One edit of the base and its effects; ``source`` is None for the base itself.

    A control has the source and the scale of the point that it belongs to.
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
    refusal_rise: Interval | None = None
    """Rise of the share of benign prompts refused; None without such prompts."""


def grid_sources(grid: SweepGrid) -> Iterator[Source]:
    """Yield the sources of a grid; those that share a ranking are neighbours."""
    for rule in grid.rules:
        for layers in grid.layers:
            for density in grid.densities:
                yield Source(rule=rule, layers=layers, density=density)


def grid_points(points: Sequence[Point]) -> list[Point]:
    """Filter out the base and the controls."""
    return [point for point in points if point.source and not point.control]


def reaches(point: Point, goal: SweepGoal) -> bool:
    """Whether all intervals of ``point`` end within the goal."""
    return point.asr_or_degenerate.high <= goal.max_asr and keeps_help(point, goal)


def keeps_help(point: Point, goal: SweepGoal) -> bool:
    """Whether the rises of the NLL and of refusals on benign data end within the goal."""
    refused = point.refusal_rise
    return point.nll_rise.high <= goal.max_nll_rise and (refused is None or refused.high <= goal.max_refusal_rise)


def is_hopeless(point: Point, goal: SweepGoal) -> bool:
    """Whether a whole interval on benign data is beyond the goal, so that larger scales need no try."""
    refused = point.refusal_rise
    return point.nll_rise.low > goal.max_nll_rise or (refused is not None and refused.low > goal.max_refusal_rise)


def find_knee(points: Sequence[Point], goal: SweepGoal) -> Point | None:
    """Find the sparsest edit that reaches the goal; None if there is none."""
    return min((point for point in points if reaches(point, goal)), key=_size, default=None)


def find_best(points: Sequence[Point], goal: SweepGoal) -> Point:
    """Find the knee or, if there is none, the next best point.

    That is the lowest attack success among the points that keep help within the goal, or else among all.
    """
    knee = find_knee(points, goal)
    if knee is not None:
        return knee
    keeping = [point for point in points if keeps_help(point, goal)]
    return min(keeping or points, key=lambda point: (point.asr_or_degenerate.high, *_size(point)))


def pruned_edits(points: Sequence[Point], spec: HarmVectorSweepSpec) -> list[tuple[Source, float]]:
    """List the edits of the grid that were not measured."""
    measured = {(_key(point.source), point.scale) for point in grid_points(points) if point.source}
    return [
        (source, scale)
        for source in grid_sources(spec.grid)
        for scale in sorted(spec.grid.scales)
        if (_key(source), scale) not in measured
    ]


def as_csv(points: Sequence[Point]) -> str:
    """Format the points as CSV: one line per point, three columns per interval."""
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
    """Order edits by how much they change: weights first, then the norm.

    The norm alone would always favour a dense vector.
    """
    return point.kept, point.edit_norm


def _key(source: Source) -> str:
    return source.model_dump_json()
