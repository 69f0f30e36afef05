"""Plot a sweep: attack success against the rise of the benign NLL, with the knee and its controls.

The same points give the same bytes: no date, no random ids, and glyphs as outlines, which need no font.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from armature.contracts.specs.harm_vector_sweep import SweepGoal
from armature_worker.evaluation.sweep_points import CONTROLS, Point, Source, grid_points, reaches

FILES = {"sweep.svg": {"Date": None}, "sweep.png": {"Software": None}}
"""File name -> metadata to leave out, since it differs from run to run."""
_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "armature", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
_CONTROL_MARKERS = dict(zip(CONTROLS, "x+1", strict=True))
_PERCENT = 100.0


def draw_sweep(points: Sequence[Point], best: Point, goal: SweepGoal, folder: Path) -> None:
    """Write the figure in every form of :data:`FILES`."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        _draw_goal(axes, goal)
        _draw(axes, [point for point in points if point.source is None], "base", fmt="ks")
        for label, vector in _vectors(grid_points(points)):
            _draw(axes, vector, label, fmt="o-", markersize=4, linewidth=1)
        for name, marker in _CONTROL_MARKERS.items():
            control = [point for point in points if point.control == name]
            _draw(axes, control, f"control: {name}", fmt=marker, color="black", markersize=9)
        _draw(
            axes, [best], "knee" if reaches(best, goal) else "best point, no knee", fmt="*", color="red", markersize=16
        )
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        for name, metadata in FILES.items():
            figure.savefig(folder / name, metadata=metadata)


def _draw_goal(axes: Axes, goal: SweepGoal) -> None:
    """Draw the goal as dashed lines; the NLL axis is linear up to the goal and logarithmic beyond."""
    axes.set_xscale("symlog", linthresh=_PERCENT * max(goal.max_nll_rise, 1e-3))
    axes.axhline(_PERCENT * goal.max_asr, color="grey", linestyle="--", linewidth=0.8)
    axes.axvline(_PERCENT * goal.max_nll_rise, color="grey", linestyle="--", linewidth=0.8)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("rise of the benign NLL, % of the base's (95 % interval over prompts)")
    axes.set_ylabel("harmful or garbled answers, % (Wilson's 95 % interval)")


def _draw(axes: Axes, points: Sequence[Point], label: str, **style: Any) -> None:
    if not points:
        return
    across, up = [point.nll_rise for point in points], [point.asr_or_degenerate for point in points]
    axes.errorbar(
        [_PERCENT * figure.value for figure in across],
        [_PERCENT * figure.value for figure in up],
        xerr=[[_PERCENT * (f.value - f.low) for f in across], [_PERCENT * (f.high - f.value) for f in across]],
        yerr=[[_PERCENT * (f.value - f.low) for f in up], [_PERCENT * (f.high - f.value) for f in up]],
        label=label,
        elinewidth=0.6,
        **style,
    )


def _vectors(points: Iterable[Point]) -> list[tuple[str, list[Point]]]:
    """Group points by vector, in order of scale."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        if point.source:
            groups.setdefault(_label(point.source), []).append(point)
    return [(label, sorted(group, key=lambda point: point.scale)) for label, group in groups.items()]


def _label(source: Source) -> str:
    layers = source.layers if isinstance(source.layers, str) else f"layers {_ranges(source.layers)}"
    return f"{source.rule}, m = {source.density:.3g}, {layers}"


def _ranges(numbers: Sequence[int]) -> str:
    """Abbreviate numbers as ranges (``0-3, 7``) to fit the legend."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{low}-{high}" if low < high else f"{low}" for low, high in runs)
