"""``pairs.generate``: write contrasting answers, keep what the judges confirm, make data sets.

RLCD (arXiv 2307.12950) labels by construction: the answer under the instruction for an attribute is the better one. A
weak teacher often follows neither instruction, so here judges confirm each label, and what they do not is dropped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from armature.contracts.base import canonical_json
from armature.contracts.datasets import PreferenceRow, Prompt, PromptRow
from armature.contracts.judges import EndpointJudge
from armature.contracts.pairs import PairsMetadata
from armature.contracts.specs.base import describe_price
from armature.contracts.specs.pairs import EndpointTeacher, PairsGenerateSpec, judge_role, teacher_role
from armature.errors import InvalidDataset
from armature.modeling.tokenization.dialogues import as_messages
from armature_worker.context.ports import DatasetOutput, Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents
from armature_worker.data.tokenized import generator, load_rows
from armature_worker.models.checkpoints import checkpoint_metadata
from armature_worker.pairs.agreement import HumanLabels, describe_attribute
from armature_worker.pairs.grading import Grader
from armature_worker.pairs.journal import Journal
from armature_worker.pairs.labels import Judged, LabelledRow, judge_candidates, label_across, make_hard_pairs
from armature_worker.pairs.plan import Ask, PlannedPair, plan_pairs
from armature_worker.pairs.screening import Dropped, screen_pairs
from armature_worker.pairs.teachers import Draft, Teachers, by_teacher

_SPLIT = 5
"""Number of the random stream that splits the prompts."""
_FEW = 0.3
"""Share of an attribute's pairs kept below which the job warns."""
_ENOUGH = 20
"""Kept pairs below which no share is worth a warning."""
_ONE_SIDED = 0.75
"""Share of pairs in which one side is the longer one above which the job warns."""


def run(spec: PairsGenerateSpec, context: RecipeContext) -> RecipeResult:
    """Generate pairs. Output: ``pairs`` with rows, report and what was dropped, and data sets.

    Raises:
        InvalidDataset: No pair is left.
        InvalidRequest: The worker has no such endpoint, or a model can not encode a prompt.
        ContextLengthExceeded: A prompt leaves no room for an answer.
        EndpointUnavailable: An endpoint does not answer.
    """
    context.progress("load", 0, 1)
    prompts = _load_prompts(spec, context)
    people = _load_human_labels(context)
    price = spec.price({"prompts": len(prompts), "human_labels": len(people)})
    context.log(f"{len(prompts)} prompts: at most {describe_price(price)}", data={"price": price})
    independent = _check_independence(spec, context)
    journal = Journal(context, spec.checkpoint_every)
    plan = plan_pairs(spec, prompts)
    candidates, dropped = screen_pairs(plan, _write_drafts(spec, context, plan, journal), spec.screen)
    grade = Grader(spec, context, journal).grade
    judged = judge_candidates(spec, candidates, grade)
    kept = [one for one in judged if one.is_kept(spec)]
    rows = [*label_across(spec, kept, grade), *make_hard_pairs(spec, kept, grade)]
    humans = HumanLabels(spec, people)
    humans.ask_judges(grade)
    _require_rows(rows, judged, dropped)
    training, held_out = split_rows(rows, spec.held_out_share, spec.seed)
    metadata = PairsMetadata(
        rows=len(training),
        held_out_rows=len(held_out),
        prompts=len(prompts),
        hard_pairs=len(rows) - len(kept),
        labels=dict(Counter(name for row in rows for name, label in row.labels.items() if label is not None)),
        independent=independent,
        attributes={name: describe_attribute(spec, name, judged, dropped, rows, humans) for name in spec.attributes},
    )
    _warn(metadata, context)
    return _write(spec, context, metadata, (training, held_out), [*_rejected(judged, spec), *map(_as_json, dropped)])


def split_rows(rows: Sequence[LabelledRow], share: float, seed: int) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Hold out a share of the prompts with all their rows; none if that would leave no prompt to train on."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    count = max(1, round(share * len(prompts))) if share else 0
    if count >= len(prompts):
        return list(rows), []
    order = torch.randperm(len(prompts), generator=generator(seed, _SPLIT))
    chosen = {prompts[index] for index in order[:count].tolist()}
    return [row for row in rows if row.prompt not in chosen], [row for row in rows if row.prompt in chosen]


def _load_prompts(spec: PairsGenerateSpec, context: RecipeContext) -> list[Prompt]:
    """Load the prompts, each once."""
    rows = load_rows(context, "prompts", PromptRow)
    return list(dict.fromkeys(row.prompt for row in rows))[: spec.max_prompts]


def _load_human_labels(context: RecipeContext) -> list[PreferenceRow]:
    role = "human_labels"
    return load_rows(context, role, PreferenceRow) if role in context.files else []


def _check_independence(spec: PairsGenerateSpec, context: RecipeContext) -> bool:
    """Return whether there is a judge and no judge is a teacher's model; warn otherwise."""
    if not spec.judges:
        context.log("no judge: labels are by construction alone, and no pair is filtered", "warn")
        return False
    teachers = {_identity(teacher, context, teacher_role(index)) for index, teacher in enumerate(spec.teachers)}
    same = [
        index for index, judge in enumerate(spec.judges) if _identity(judge, context, judge_role(index)) in teachers
    ]
    for index in same:
        context.log(f"judge {index} is a model that writes answers: its agreement is not independent", "warn")
    return not same


def _identity(model: Any, context: RecipeContext, role: str) -> tuple[str, ...]:
    if isinstance(model, EndpointTeacher | EndpointJudge):
        return model.endpoint, model.model
    return (checkpoint_metadata(context.artifacts[role]).model_digest,)


def _write_drafts(
    spec: PairsGenerateSpec, context: RecipeContext, plan: Sequence[PlannedPair], journal: Journal
) -> list[tuple[Draft, Draft]]:
    """Have the teachers write both sides of every pair."""
    teachers = Teachers(spec, context)

    def answer(asks: Sequence[Ask]) -> list[tuple[str, bool]]:
        return [(draft.text, draft.finished) for draft in teachers.answer(asks)]

    tasks = {ask.key: ask for ask in by_teacher([ask for pair in plan for ask in pair.asks])}
    results = journal.complete("generate", tasks, answer, spec.sampling.batch_size)
    drafts = {key: Draft(*result) for key, result in zip(tasks, results, strict=True)}
    return [(drafts[pair.asks[0].key], drafts[pair.asks[1].key]) for pair in plan]


def _require_rows(rows: Sequence[LabelledRow], judged: Sequence[Judged], dropped: Sequence[Dropped]) -> None:
    if not rows:
        reasons = Counter(one.reason for one in dropped)
        if judged:
            reasons["judges"] = len(judged)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise InvalidDataset(f"no pair is left; dropped were {counts}", param="spec.prompts")


def _warn(metadata: PairsMetadata, context: RecipeContext) -> None:
    for name, pairs in metadata.attributes.items():
        if pairs.kept < _FEW * pairs.written:
            context.log(f"{pairs.kept} of {pairs.written} pairs for {name} are kept", "warn", pairs.model_dump())
        longer = 0.5 if pairs.longer_for is None or pairs.kept < _ENOUGH else pairs.longer_for
        if not 1 - _ONE_SIDED <= longer <= _ONE_SIDED:
            message = f"the answer for {name} is the longer one in {longer:.0%} of its pairs"
            context.log(f"{message}: a lower screen.max_length_ratio lessens that", "warn")


def _rejected(judged: Sequence[Judged], spec: PairsGenerateSpec) -> Iterable[dict[str, Any]]:
    for one in judged:
        if not one.is_kept(spec):
            margins = [verdict.margin for verdict in one.verdicts]
            row = _as_json(Dropped(one.candidate.plan, "judges", one.candidate.texts))
            yield row | {"margins": [m if m is None or not one.better else -m for m in margins]}


def _as_json(dropped: Dropped) -> dict[str, Any]:
    """Format a dropped pair; here its sides are told apart."""
    prompt = dropped.plan.prompt
    return {
        "prompt": prompt if isinstance(prompt, str) else as_messages(prompt),
        "attribute": dropped.plan.attribute,
        "reason": dropped.reason,
        "for": dropped.texts[0],
        "against": dropped.texts[1],
    }


def _write(
    spec: PairsGenerateSpec,
    context: RecipeContext,
    metadata: PairsMetadata,
    parts: tuple[Sequence[LabelledRow], Sequence[LabelledRow]],
    rejected: Iterable[Mapping[str, Any]],
) -> RecipeResult:
    """Write the artifact, and name its files of rows as data sets."""
    folder = context.workdir / "pairs"
    folder.mkdir()
    names = [_teacher_name(teacher) for teacher in spec.teachers]
    made = []
    for name, file, rows in zip(
        (spec.name, f"{spec.name}-held-out"), ("pairs.jsonl", "held_out.jsonl"), parts, strict=True
    ):
        if rows:
            _write_lines(folder / file, (row.as_json(names) for row in rows))
            made.append(DatasetOutput(name, folder / file))
    _write_lines(folder / "rejected.jsonl", rejected)
    report = {
        "schema_version": 1,
        "settings": spec.model_dump(mode="json"),
        "rubrics": {name: spec.rubric(name).model_dump(mode="json") for name in spec.attributes},
        "metrics": metadata.model_dump(mode="json"),
    }
    (folder / "report.json").write_bytes(canonical_json(report))
    return RecipeResult([Output("pairs", folder, metadata, parents(context))], datasets=made)


def _teacher_name(teacher: Any) -> str:
    return teacher.model if isinstance(teacher, EndpointTeacher) else teacher.base_model


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
