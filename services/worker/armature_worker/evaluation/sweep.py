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

from armature.algorithms.metrics import Rate, attack_success, mean
from armature.algorithms.paired_bootstrap import Estimate, relative_rise
from armature.algorithms.task_vectors import SparseVector, restore_entries, save_entries, subtract_task_vector
from armature.contracts.base import Contract, canonical_json
from armature.contracts.datasets import Lexicon, Prompt, PromptCompletionRow, PromptRow
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec
from armature_worker.context.ports import RecipeContext
from armature_worker.data.tokenized import Example, load_rows, require_rows, stream_seed, tokenise
from armature_worker.evaluation.evaluator import Evaluator
from armature_worker.evaluation.requests import EvaluationRequest
from armature_worker.evaluation.sweep_points import Interval, Point, Source

PHASE = "sweep"
_STATE = "sweep.json"
_ATTACKS, _BOOTSTRAP = 1, 5
"""Numbers of the random streams; attacks draw as in ``evaluation.run``."""


class _State(Contract):
    points: list[Point] = Field([])
    base_nats: list[float] = Field([])


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
    def base_nats(self) -> Sequence[float]:
        """The base's negative log-likelihood of every benign prompt's completions, in nats."""
        return self._state.base_nats

    def find(self, source: Source | None, control: str | None, scale: float) -> Point | None:
        """Find the finished point of an edit; None if it is not measured yet."""
        edit = source, control, scale
        return next((point for point in self.points if (point.source, point.control, point.scale) == edit), None)

    def add(self, point: Point, base_nats: Sequence[float] | None = None) -> None:
        """Save a finished point; with the base, save ``base_nats``, which other points are compared to."""
        nats = self.base_nats if base_nats is None else base_nats
        self._state = _State(points=[*self.points, point], base_nats=list(nats))
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
        (lexicon,) = load_rows(context.files["lexicon"], Lexicon)
        self._prompts = [row.prompt for row in load_rows(context.files["harmful_prompts"], PromptRow)]
        self._evaluator = Evaluator(_as_evaluation(spec, lexicon), context, journal.check)
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
            nats = self._nats()
            self._journal.add(self._measure_model(nats, nats), nats)

    def measure(self, source: Source, control: str | None, scale: float, vector: SparseVector) -> Point:
        """Subtract ``scale * vector`` from the base, measure, restore the base."""
        with _edited(self.model, vector, scale):
            point = self._measure_model(self._journal.base_nats, self._nats()).model_copy(
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

    def _measure_model(self, before: Sequence[float], nats: Sequence[float]) -> Point:
        """Measure the model as it is now; the caller fills in the edit."""
        requests = [
            EvaluationRequest(prompt, None, (_ATTACKS, 0, column)) for column, prompt in enumerate(self._prompts)
        ]
        scores = [answer.score for answer in self._evaluator.answer(requests, "harmful_prompts")]
        rate, either = attack_success([s.harmful for s in scores], [s.degenerate for s in scores])
        rise = relative_rise(before, nats, stream_seed(self._seed, _BOOTSTRAP))
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
            nll=sum(nats) / sum(len(e.ids) - e.completion_start for rows in self._benign for e in rows),
            nll_rise=_interval(rise),
        )

    def _nats(self) -> list[float]:
        """Compute the negative log-likelihood of every benign prompt's completions, in nats."""
        examples = [example for rows in self._benign for example in rows]
        values = iter(self._evaluator.log_likelihoods(examples, "benign_pairs"))
        return [-sum(next(values) for _ in rows) for rows in self._benign]

    def _load_benign(self, context: RecipeContext) -> list[list[Example]]:
        """Load examples grouped by prompt, since the bootstrap resamples prompts."""
        rows, by_prompt = load_rows(context.files["benign_pairs"], PromptCompletionRow), dict[Prompt, list[Example]]()
        for row in rows:
            length = self._evaluator.context_length
            examples = tokenise(self._evaluator.tokenizer, row.prompt, [row.completion], length) or []
            by_prompt.setdefault(row.prompt, []).extend(examples)
        kept = [examples for examples in by_prompt.values() if examples]
        require_rows(kept, len(rows), "spec.benign_pairs")
        return kept


def _as_evaluation(spec: HarmVectorSweepSpec, lexicon: Lexicon) -> EvaluationRunSpec:
    """Build the ``evaluation.run`` spec of the base alone."""
    return EvaluationRunSpec(
        base_model=spec.base_model,
        lexicon=spec.lexicon,
        harmful_prompts=spec.harmful_prompts,
        benign_pairs=spec.benign_pairs,
        attributes=list(lexicon.attributes),
        sampling=spec.sampling,
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
