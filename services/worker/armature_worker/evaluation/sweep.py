"""Measure edits of one loaded base, each on the same prompts, and write down what is finished.

An edit is made in place and undone to the bit, so the order of the points does not matter. Every answer draws from a
random stream that its prompt names: two edits are compared under the same draws.
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
from armature_worker.evaluation.evaluator import Subject
from armature_worker.evaluation.requests import Question
from armature_worker.evaluation.sweep_points import Interval, Point, Source

PHASE = "sweep"
_STATE = "sweep.json"
_ATTACKS, _BOOTSTRAP = 1, 5
"""Names of the random streams; attacks draw as in evaluation.run."""


class _State(Contract):
    points: list[Point] = Field([])
    base_nats: list[float] = Field([])


class Journal:
    """The finished points: kept through a lost attempt, so that none is measured twice."""

    def __init__(self, context: RecipeContext, total: int) -> None:
        self._context, self._total = context, total
        self._folder = context.workdir / "sweep_state"
        saved = context.load_checkpoint()
        self._state = _State.model_validate_json((saved.path / _STATE).read_bytes()) if saved else _State()
        if saved:
            context.log(f"resumed after {len(self.points)} points")

    @property
    def points(self) -> Sequence[Point]:
        """In the order in which they were measured, the base first."""
        return self._state.points

    @property
    def base_nats(self) -> Sequence[float]:
        """Of the base on every benign prompt."""
        return self._state.base_nats

    def find(self, source: Source | None, control: str | None, scale: float) -> Point | None:
        """The finished point of this edit."""
        edit = source, control, scale
        return next((point for point in self.points if (point.source, point.control, point.scale) == edit), None)

    def add(self, point: Point, base_nats: Sequence[float] | None = None) -> None:
        """Write a point down, and with the base what the others are compared to."""
        nats = self.base_nats if base_nats is None else base_nats
        self._state = _State(points=[*self.points, point], base_nats=list(nats))
        self._folder.mkdir(exist_ok=True)
        (self._folder / _STATE).write_bytes(canonical_json(self._state.model_dump(mode="json")))
        self._context.save_checkpoint(len(self.points), self._folder)
        figures = {"asr_or_degenerate": point.asr_or_degenerate.value, "nll_rise": point.nll_rise.value}
        self._context.progress(PHASE, min(len(self.points), self._total), self._total, figures)

    def check(self, _role: str, _done: int, _of: int) -> None:
        """What happens inside a point counts as progress of the sweep, and can be stopped there."""
        self._context.progress(PHASE, min(len(self.points), self._total), self._total)


class Meter:
    """The base, its data and its scorer, loaded once.

    Raises:
        InvalidDataset: A bad row, or no benign pair fits into the context.
    """

    def __init__(self, spec: HarmVectorSweepSpec, context: RecipeContext, journal: Journal) -> None:
        self._journal, self._seed = journal, spec.seed
        (lexicon,) = load_rows(context.files["lexicon"], Lexicon)
        self._prompts = [row.prompt for row in load_rows(context.files["harmful_prompts"], PromptRow)]
        self._subject = Subject(_as_evaluation(spec, lexicon), context, journal.check)
        self._benign = self._load_benign(context)

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        return self._subject.backbone_model

    @property
    def prompts(self) -> int:
        """How many harmful prompts are asked at each point."""
        return len(self._prompts)

    def measure_base(self) -> None:
        """The first point, unless it is finished."""
        if self._journal.find(None, None, 0.0) is None:
            nats = self._nats()
            self._journal.add(self._judge(nats, nats), nats)

    def measure(self, source: Source, control: str | None, scale: float, vector: SparseVector) -> Point:
        """Subtract, look, undo."""
        with _edited(self.model, vector, scale):
            point = self._judge(self._journal.base_nats, self._nats()).model_copy(
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

    def _judge(self, before: Sequence[float], nats: Sequence[float]) -> Point:
        """The model as it is now, as a point without an edit."""
        questions = [Question(prompt, None, (_ATTACKS, 0, column)) for column, prompt in enumerate(self._prompts)]
        scores = [answer.score for answer in self._subject.answer(questions, "harmful_prompts")]
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
        """Of every benign prompt's completions together."""
        examples = [example for rows in self._benign for example in rows]
        values = iter(self._subject.log_likelihoods(examples, "benign_pairs"))
        return [-sum(next(values) for _ in rows) for rows in self._benign]

    def _load_benign(self, context: RecipeContext) -> list[list[Example]]:
        """Examples by prompt: the bootstrap draws prompts."""
        rows, by_prompt = load_rows(context.files["benign_pairs"], PromptCompletionRow), dict[Prompt, list[Example]]()
        for row in rows:
            length = self._subject.context_length
            examples = tokenise(self._subject.tokenizer, row.prompt, [row.completion], length) or []
            by_prompt.setdefault(row.prompt, []).extend(examples)
        kept = [examples for examples in by_prompt.values() if examples]
        require_rows(kept, len(rows), "spec.benign_pairs")
        return kept


def _as_evaluation(spec: HarmVectorSweepSpec, lexicon: Lexicon) -> EvaluationRunSpec:
    """The base alone as a subject of evaluation.run."""
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
