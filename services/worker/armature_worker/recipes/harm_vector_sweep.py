"""``harm_vector.sweep``: fine-tune once, try many selections and scales, pick the sparsest edit.

Finished points survive a lost attempt. The harm-tuned difference does not
(:mod:`armature_worker.training.harm_fine_tuning`), so the next attempt fine-tunes again; the same seed gives the same
bits on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from armature.algorithms.metrics import wilson_rate
from armature.algorithms.selection_rules import RANKINGS, RandomSigns, Selectable, permute_values, select_random
from armature.algorithms.task_vectors import SparseVector
from armature.algorithms.tensor_sources import Part, TensorSource
from armature.contracts.artifacts import CheckpointMetadata, ReportMetadata
from armature.contracts.base import canonical_json
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.modeling.checkpoints.task_vector import VectorOrigin, write_task_vector
from armature.modeling.layers import chosen_weights
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents
from armature_worker.data.tokenized import RowEncoder, stream_seed
from armature_worker.evaluation.sweep import Journal, Meter
from armature_worker.evaluation.sweep_points import (
    CONTROLS,
    Point,
    Source,
    as_csv,
    find_best,
    grid_points,
    grid_sources,
    is_hopeless,
    pruned_edits,
    reaches,
)
from armature_worker.training.harm_fine_tuning import (
    FineTuning,
    TuningData,
    learn_difference,
    load_examples,
    plan_fine_tuning,
)
from armature_worker.training.harm_vector_metadata import describe_vector, keep_entries, origin_data

_SOURCES = ("harmful_pairs", "safe_pairs", "guard_pairs")
"""The roles of the data sets that shape the vector."""
_CONTROL_DRAWS = 1
"""Number of the random stream that draws the controls; the same as in ``harm_vector.build``."""


def run(spec: HarmVectorSweepSpec, context: RecipeContext) -> RecipeResult:
    """Sweep edits of the base. Outputs: ``report`` and, if there is a knee, its ``harm_vector``.

    Raises:
        InvalidDataset: A row is bad, or no pair is left within ``max_length`` or the context.
        InvalidRequest: The model lacks one of the layers.
        ContextLengthExceeded: A prompt leaves no room for an answer.
        NonFiniteLoss: Fine-tuning diverged.
        EmptyTaskVector: Fine-tuning changed none of the selected weights.
    """
    base = context.artifacts["base_model"]
    assert isinstance(base.manifest.metadata, CheckpointMetadata)
    context.progress("load", 0, 1)
    tokenizer = load_tokenizer(base.path)
    examples = {
        role: load_examples(context, RowEncoder.of(context, role, tokenizer, spec.chat), spec.training.max_length)
        for role in _SOURCES
        if role in context.files
    }
    used = plan_fine_tuning(spec.training, spec.grid.layers, context, chain(*examples.values()))
    journal = Journal(context, 1 + spec.grid.points + len(CONTROLS))
    meter = Meter(spec, context, journal)
    grid = spec.grid
    fine_tuning = FineTuning(spec.training, used, grid.targets, grid.layers, spec.guard, spec.seed, "spec.grid")
    fine_tuning.weights(meter.model)  # a missing layer ends the job before anything is fine-tuned
    if (bound := wilson_rate(0, meter.prompts).high) > spec.goal.max_asr:
        context.log(f"{meter.prompts} harmful prompts are too few: none of them answered leaves {bound:.3f}", "warn")
    meter.measure_base()
    data = TuningData(examples["harmful_pairs"], examples.get("safe_pairs"), examples.get("guard_pairs"))
    difference = learn_difference(fine_tuning, context, data)
    vectors = _Vectors(spec, context, difference, meter)
    _sweep_grid(spec, journal, meter, vectors)
    chosen = find_best(grid_points(journal.points), spec.goal)
    is_knee = reaches(chosen, spec.goal)
    _measure_controls(chosen, journal, meter, vectors)
    made_from = parents(context)
    outputs = [_write_report(spec, context, journal.points, chosen)]
    if is_knee and chosen.source:
        origin = VectorOrigin(
            base_model_digest=base.manifest.metadata.model_digest,
            data=origin_data(made_from, _SOURCES),
            rule=chosen.source.rule,
            density=chosen.source.density,
        )
        folder = context.workdir / "harm_vector"
        written = write_task_vector(vectors.make(chosen.source), origin, folder)
        outputs.append(Output("harm_vector", folder, describe_vector(written, examples, base.path, used), made_from))
    return RecipeResult(outputs)


class _Vectors:
    """Vectors of one difference; caches the newest ranking and vector, which neighbours share."""

    def __init__(
        self, spec: HarmVectorSweepSpec, context: RecipeContext, difference: TensorSource, meter: Meter
    ) -> None:
        self._spec, self._folder, self._meter = spec, context.workdir, meter
        self._difference = difference
        self._seed = stream_seed(spec.seed, _CONTROL_DRAWS)
        self._ranking: tuple[Any, Selectable] | None = None
        self._vector: tuple[Source, SparseVector] | None = None

    def make(self, source: Source) -> SparseVector:
        """Select the vector of a point."""
        if self._vector is None or self._vector[0] != source:
            self._vector = source, keep_entries(lambda: self._rank(source).select(source.density))
        return self._vector[1]

    def control(self, name: str, source: Source) -> SparseVector:
        """Draw the control ``name`` of the vector of ``source``."""
        draw: dict[str, Callable[[], SparseVector]] = {
            "random": lambda: select_random(self._part(source), source.density, self._seed, self._folder),
            "permuted": lambda: permute_values(self.make(source), self._seed),
            "random_sign": lambda: RandomSigns(self.make(source), self._seed),
        }
        return draw[name]()

    def _rank(self, source: Source) -> Selectable:
        """Rank the entries of the difference, once for all densities."""
        key = source.rule, source.layers
        if self._ranking is None or self._ranking[0] != key:
            rank = RANKINGS[source.rule]
            self._ranking = key, rank(self._part(source), max(self._spec.grid.densities), self._folder)
        return self._ranking[1]

    def _part(self, source: Source) -> TensorSource:
        weights = chosen_weights(self._meter.model, self._spec.grid.targets, source.layers, "spec.grid")
        return Part(self._difference, weights)


def _sweep_grid(spec: HarmVectorSweepSpec, journal: Journal, meter: Meter, vectors: _Vectors) -> None:
    for source in grid_sources(spec.grid):
        for scale in sorted(spec.grid.scales):
            point = journal.find(source, None, scale) or meter.measure(source, None, scale, vectors.make(source))
            if spec.prune and is_hopeless(point, spec.goal):
                break


def _measure_controls(chosen: Point, journal: Journal, meter: Meter, vectors: _Vectors) -> None:
    source = chosen.source
    assert source is not None
    for name in CONTROLS:
        if journal.find(source, name, chosen.scale) is None:
            meter.measure(source, name, chosen.scale, vectors.control(name, source))


def _write_report(spec: HarmVectorSweepSpec, context: RecipeContext, points: Sequence[Point], best: Point) -> Output:
    """Write ``report.json`` (all points and settings), ``points.csv`` and the figure."""
    from armature_worker.evaluation.sweep_plot import draw_sweep  # matplotlib, which no other job needs

    base = context.artifacts["base_model"].manifest.metadata
    assert isinstance(base, CheckpointMetadata)
    subject, is_knee = {"model_digest": base.model_digest}, reaches(best, spec.goal)
    pruned = pruned_edits(points, spec)
    summary: dict[str, Any] = {
        "no_knee": not is_knee,
        "recommended_scale": best.scale if is_knee else None,
        "best": best.model_dump(mode="json"),
        "base": points[0].model_dump(mode="json"),
        "measured": len(points),
        "pruned": len(pruned),
    }
    report = {
        "schema_version": 1,
        "subject": subject,
        "settings": spec.model_dump(mode="json"),
        "metrics": summary,
        "points": [point.model_dump(mode="json") for point in points],
        "pruned": [source.model_dump(mode="json") | {"scale": scale} for source, scale in pruned],
    }
    folder = context.workdir / "report"
    folder.mkdir()
    (folder / "report.json").write_bytes(canonical_json(report))
    (folder / "points.csv").write_text(as_csv(points))
    draw_sweep(points, best, spec.goal, folder)
    return Output("report", folder, ReportMetadata(subject=subject, metrics=summary), parents(context))
