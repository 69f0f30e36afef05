"""A sweep over the demo's base: one fine-tuning, a grid of edits, the knee and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from armature_cli.demo import plan
from armature_cli.demo.datasets import completions, prompts
from armature_cli.demo.world import World
from armature_worker.evaluation.sweep_points import Point
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.tables import SWEPT, Edit

_INTERVALS = ("asr", "asr_or_degenerate", "nll_rise")


@dataclass(frozen=True)
class Swept:
    """The result of a sweep: every point, the best one, and the digest of its vector if it is a knee."""

    points: Sequence[Point]
    best: Point
    vector: str | None

    def figures(self, edit: Edit) -> dict[str, float]:
        """Look up an edit's figures and the ends of their intervals."""
        point = next(point for point in self.points if _is_point_of(edit, point))
        figures = {"edit_norm": point.edit_norm, "is_knee": float(self.vector is not None and point == self.best)}
        for name in _INTERVALS:
            interval = getattr(point, name)
            figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return figures


def sweep(laboratory: Laboratory, world: World, base_model: str, data: plan.Datasets) -> Swept:
    """Sweep a base on data that the demo's evaluations do not use; keep the figure by its seed."""
    attacks = world.held_out_harmful_prompts(plan.ATTACKS + plan.SWEEP_ATTACKS)[plan.ATTACKS :]
    benign = world.held_out_benign_pairs(2 * plan.BENIGN_PAIRS)[plan.BENIGN_PAIRS :]
    unseen = replace(
        data, harmful_prompts=laboratory.keep(prompts(attacks)), benign_pairs=laboratory.keep(completions(benign))
    )
    spec = plan.sweep_spec(base_model, unseen, world.seed, SWEPT).model_copy(update={"prune": False})
    done = laboratory.run(spec)
    laboratory.show(f"sweep-{world.seed}.svg", done.artifacts["report"].path / "sweep.svg")
    report, vector = done.report(), done.artifacts.get("harm_vector")
    return Swept(
        [Point.model_validate(point) for point in report["points"]],
        Point.model_validate(report["metrics"]["best"]),
        None if vector is None else vector.digest,
    )


def _is_point_of(edit: Edit, point: Point) -> bool:
    if edit.control:
        return point.control == edit.control
    return point.control is None and point.source == edit.source and point.scale == edit.scale
