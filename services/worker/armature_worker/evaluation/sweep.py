"""Measure edits of one loaded base, all on the same prompts, and save each finished point.

An edit is made in place and undone bit for bit, so the order of the points does not matter. The random stream of an
answer depends on its prompt alone, so two edits are compared under the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from armature.algorithms.lexicon import AnswerScore
from armature.algorithms.metrics import Rate, attack_success, mean
from armature.algorithms.paired_bootstrap import Estimate, mean_rise, relative_rise
from armature.algorithms.task_vectors import SparseVector, restore_entries, save_entries, subtract_task_vector
from armature.contracts.base import Contract, canonical_json
from armature.contracts.datasets import Lexicon, Prompt, PromptCompletionRow, PromptRow
from armature.contracts.preferences import ATTRIBUTES
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec
from armature_worker.context.ports import RecipeContext
from armature_worker.data.tokenized import Example, load_rows, require_rows, stream_seed
from armature_worker.evaluation.evaluator import Evaluator
from armature_worker.evaluation.requests import EvaluationRequest
from armature_worker.evaluation.sweep_points import Interval, Point, Source

PHASE = "sweep"
_STATE = "sweep.json"
_ATTACKS, _BOOTSTRAP, _BENIGN = 1, 5, 6
"""Numbers of the random streams; answers draw as in ``evaluation.run``."""


class BaseFigures(Contract):
    """The base's figures by prompt, which those of the edits are compared with."""

    nats: list[float] = Field([], description="negative log-likelihood of a benign prompt's completions")
    refusals: list[bool] = Field([], description="whether a benign prompt was refused")


class _State(Contract):
    points: list[Point] = Field([])
    base: BaseFigures = Field(default_factory=lambda: BaseFigures())


class Journal:
    """The finished points, saved as checkpoints, so that no attempt measures one again."""

    def __init__(self, context: RecipeContext, total: int) -> None:
        self._context, self._total = context, total
        self._folder = context.workdir / "sweep_state"
        saved = context.load_checkpoint()
        self._state = _State.model_validate_json((saved.path / _STATE).read_bytes()) if saved else _State()
        if saved:
            context.log(f"resumed after {len(self.points)} points")

    @property
    def points(self) -> Sequence[Point]:
        """Finished points in the order of measurement, the base first."""
        return self._state.points

    @property
    def base(self) -> BaseFigures:
        """The base's figures by prompt."""
        return self._state.base

    def find(self, source: Source | None, control: str | None, scale: float) -> Point | None:
        """Find the finished point of an edit; None if it is not measured yet."""
        edit = source, control, scale
        return next((point for point in self.points if (point.source, point.control, point.scale) == edit), None)

    def add(self, point: Point, base: BaseFigures | None = None) -> None:
        """Save a finished point; with the base's own point, save its figures."""
        self._state = _State(points=[*self.points, point], base=base or self.base)
        self._folder.mkdir(exist_ok=True)
        (self._folder / _STATE).write_bytes(canonical_json(self._state.model_dump(mode="json")))
        self._context.save_checkpoint(len(self.points), self._folder)
        figures = {"asr_or_degenerate": point.asr_or_degenerate.value, "nll_rise": point.nll_rise.value}
        self._context.progress(PHASE, min(len(self.points), self._total), self._total, figures)

    def check(self, _role: str, _done: int, _of: int) -> None:
        """Report the sweep's progress from inside a point, so that the job can be stopped there."""
        self._context.progress(PHASE, min(len(self.points), self._total), self._total)


class Meter:
    """Measures edits of the base; loads the base, its data and its scorer once.

    Raises:
        InvalidDataset: A row is bad, or no benign pair fits into the context.
    """

    def __init__(self, spec: HarmVectorSweepSpec, context: RecipeContext, journal: Journal) -> None:
        self._journal, self._seed = journal, spec.seed
        self._prompts = _load_prompts(context, "harmful_prompts")
        self._benign_prompts = _load_prompts(context, "benign_prompts")
        self._evaluator = Evaluator(_as_evaluation(spec, context), context, journal.check)
        self._benign = self._load_benign(context)

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        return self._evaluator.backbone_model

    @property
    def prompts(self) -> int:
        """The number of harmful prompts answered at each point."""
        return len(self._prompts)

    def measure_base(self) -> None:
        """Measure the base, the first point, unless it is finished."""
        if self._journal.find(None, None, 0.0) is None:
            base = self._figures()
            self._journal.add(self._measure_model(base, base), base)

    def measure(self, source: Source, control: str | None, scale: float, vector: SparseVector) -> Point:
        """Subtract ``scale * vector`` from the base, measure, restore the base."""
        with _edited(self.model, vector, scale):
            point = self._measure_model(self._journal.base, self._figures()).model_copy(
                update={
                    "source": source,
                    "control": control,
                    "scale": scale,
                    "kept": vector.kept,
                    "edit_norm": scale * vector.norm,
                }
            )
        self._journal.add(point)
        return point

    def _measure_model(self, before: BaseFigures, now: BaseFigures) -> Point:
        """Measure the model as it is now; the caller fills in the edit."""
        scores = self._answer(self._prompts, "harmful_prompts", _ATTACKS)
        rate, either = attack_success([s.harmful for s in scores], [s.degenerate for s in scores])
        seed = stream_seed(self._seed, _BOOTSTRAP)
        rise = relative_rise(before.nats, now.nats, seed)
        refused = mean_rise(before.refusals, now.refusals, seed) if now.refusals else None
        return Point(
            source=None,
            control=None,
            scale=0.0,
            kept=0,
            edit_norm=0.0,
            asr=_interval(rate),
            asr_or_degenerate=_interval(either),
            refusal=mean(score.refusal for score in scores),
            degenerate=mean(score.degenerate for score in scores),
            nll=sum(now.nats) / sum(len(e.ids) - e.completion_start for rows in self._benign for e in rows),
            nll_rise=_interval(rise),
            refusal_rise=_interval(refused) if refused else None,
        )

    def _figures(self) -> BaseFigures:
        """Measure the model on the benign data, by prompt."""
        scores = self._answer(self._benign_prompts, "benign_prompts", _BENIGN)
        return BaseFigures(nats=self._nats(), refusals=[score.refusal for score in scores])

    def _answer(self, prompts: Sequence[Prompt], role: str, stream: int) -> list[AnswerScore]:
        requests = [EvaluationRequest(prompt, None, (stream, 0, column)) for column, prompt in enumerate(prompts)]
        return [answer.score for answer in self._evaluator.answer(requests, role)]

    def _nats(self) -> list[float]:
        """Compute the negative log-likelihood of every benign prompt's completions, in nats."""
        examples = [example for rows in self._benign for example in rows]
        values = iter(self._evaluator.log_likelihoods(examples, "benign_pairs"))
        return [-sum(next(values) for _ in rows) for rows in self._benign]

    def _load_benign(self, context: RecipeContext) -> list[list[Example]]:
        """Load examples grouped by prompt, since the bootstrap resamples prompts."""
        rows, by_prompt = load_rows(context, "benign_pairs", PromptCompletionRow), dict[Prompt, list[Example]]()
        encoder, length = self._evaluator.encoder(context, "benign_pairs"), self._evaluator.context_length
        for row in rows:
            examples = encoder.tokenise(row.prompt, [row.completion], length) or []
            by_prompt.setdefault(row.prompt, []).extend(examples)
        kept = [examples for examples in by_prompt.values() if examples]
        require_rows(kept, len(rows), "spec.benign_pairs")
        return kept


def _load_prompts(context: RecipeContext, role: str) -> list[Prompt]:
    return [row.prompt for row in load_rows(context, role, PromptRow)] if role in context.files else []


def _as_evaluation(spec: HarmVectorSweepSpec, context: RecipeContext) -> EvaluationRunSpec:
    """Build the ``evaluation.run`` spec of the base alone; no attribute of the lexicon is looked at."""
    lexicons = load_rows(context, "lexicon", Lexicon) if spec.lexicon else []
    return EvaluationRunSpec(
        base_model=spec.base_model,
        lexicon=spec.lexicon,
        harmful_prompts=spec.harmful_prompts,
        benign_pairs=spec.benign_pairs,
        attributes=[name for lexicon in lexicons for name in lexicon.attributes] or list(ATTRIBUTES),
        sampling=spec.sampling,
        chat=spec.chat,
        seed=spec.seed,
    )


def _interval(figure: Rate | Estimate) -> Interval:
    values: dict[str, Any] = asdict(figure)
    return Interval(value=values["value"], low=values["low"], high=values["high"])


@contextmanager
def _edited(model: PreTrainedModel, vector: SparseVector, scale: float) -> Iterator[None]:
    parameters = dict(model.named_parameters())
    saved = save_entries(parameters, vector)
    try:
        subtract_task_vector(parameters, vector, scale)
        yield
    finally:
        restore_entries(parameters, saved)
