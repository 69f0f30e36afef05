"""``evaluation.run``: attack success, capability and preference control of a subject, by a deterministic scorer.

Each data set given adds a section to the report. The answers depend on the job's seed alone: every question draws from
a random stream of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from armature.algorithms import metrics
from armature.algorithms.preference_loss import preference_grid
from armature.contracts.artifacts import ReportMetadata
from armature.contracts.base import canonical_json
from armature.contracts.datasets import Prompt, PromptCompletionRow, PromptRow
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents
from armature_worker.data.tokenized import Example, generator, load_rows, require_rows, stream_seed, tokenise
from armature_worker.evaluation.evaluator import Answer, Subject
from armature_worker.evaluation.requests import Question

Scores = Sequence[Sequence[float]]
"""Per answer, its score for each attribute."""
UNIFORM = "uniform"
_ATTACKS, _CONTROL, _GRID, _CHOICE = 1, 2, 3, 4
"""Names of the random streams."""
_MARGIN = 0.01
"""Nats that stay between a certified delta and the gap that it rests on: room for rounding."""


@dataclass(frozen=True)
class Section:
    """What one data set showed: the figures that sum it up, the details behind them, and the answers judged."""

    summary: dict[str, Any]
    details: dict[str, Any]
    answers: list[Answer]


def run(spec: EvaluationRunSpec, context: RecipeContext) -> RecipeResult:
    """Output: ``report`` with ``report.json`` (all figures and settings) and ``samples.jsonl`` (every answer judged).

    Raises:
        AdapterBaseMismatch: The subject's parts were not made for each other.
        InvalidDataset: The lexicon lacks an attribute, or no benign pair fits into the context.
        ContextLengthExceeded: A prompt leaves no room for an answer.
    """
    context.progress("load", 0, 1)
    subject = Subject(spec, context)
    sections = {role: measure(subject, context) for role, measure in _SECTIONS.items() if role in context.files}
    described = _describe(subject, context)
    summary = {name: value for section in sections.values() for name, value in section.summary.items()}
    report = {
        "schema_version": 1,
        "subject": described,
        "settings": spec.model_dump(mode="json"),
        "metrics": summary,
        **{role: section.details for role, section in sections.items()},
    }
    folder = context.workdir / "report"
    folder.mkdir()
    (folder / "report.json").write_bytes(canonical_json(report))
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for role, section in sections.items():
            for answer in section.answers:
                file.write(json.dumps({"section": role, **answer.as_row()}, ensure_ascii=False) + "\n")
    metadata = ReportMetadata(subject=described, metrics=summary)
    return RecipeResult([Output("report", folder, metadata, parents(context))])


def _describe(subject: Subject, context: RecipeContext) -> dict[str, Any]:
    """What was judged: parts by digest, and what an instruction changed."""
    digests = {role: artifact.digest for role, artifact in context.artifacts.items()}
    sda = subject.spec.sda
    return {
        "model_digest": subject.backbone.model_digest,
        "harm_vector": subject.backbone.harm_vector_digest,
        "harm_scale": subject.backbone.harm_scale,
        "arm": digests.get("arm"),
        "arm_backbone": digests.get("arm_backbone"),
        "sda": sda.model_dump(mode="json") if sda else None,
    }


def measure_attacks(subject: Subject, context: RecipeContext) -> Section:
    """ASR on every harmful prompt. A guided subject is asked at each vertex and the centroid; the worst one counts."""
    prompts = _load_prompts(context, "harmful_prompts")
    named: Mapping[str, Mapping[str, float] | None] = {"unguided": None}
    if subject.guided:
        named = _vertices_and_centroid(subject.spec.attributes)
    questions = [
        Question(prompt, preference, (_ATTACKS, row, column))
        for row, preference in enumerate(named.values())
        for column, prompt in enumerate(prompts)
    ]
    answers = subject.answer(questions, "harmful_prompts")
    by_name = dict(zip(named, _parts(answers, len(prompts)), strict=True))
    details = {name: _attack_figures(part) for name, part in by_name.items()}
    worst = max(details, key=lambda name: details[name]["asr"]["value"])
    rate = details[worst]["asr"]
    summary = {
        "asr": rate["value"],
        "asr_low": rate["low"],
        "asr_high": rate["high"],
        "asr_worst_preference": worst,
        "asr_or_degenerate": max(figures["asr_or_degenerate"]["value"] for figures in details.values()),
        "refusal": metrics.mean(answer.score.refusal for answer in answers),
    }
    return Section(summary, {"by_preference": details, "prompts": len(prompts)}, answers)


def measure_capability(subject: Subject, context: RecipeContext) -> Section:
    """NLL of given benign completions, end of sequence included, under the backbone (the ARM off)."""
    rows = load_rows(context.files["benign_pairs"], PromptCompletionRow)
    examples: list[Example] = []
    for row in rows:
        examples += tokenise(subject.tokenizer, row.prompt, [row.completion], subject.context_length) or []
    require_rows(examples, len(rows), "spec.benign_pairs")
    tokens = [len(example.ids) - example.completion_start for example in examples]
    nats = [-value for value in subject.log_likelihoods(examples, "benign_pairs")]
    details = {"tokens": sum(tokens), "rows": len(examples), "dropped_rows": len(rows) - len(examples)}
    return Section({"nll": metrics.mean_nll(nats, tokens)}, details, [])


def measure_safe_set(subject: Subject, context: RecipeContext) -> Section:
    """How wide the safe set may be: below a prompt's critical gap none of its known harmful openings can be said.

    ``safe_set_delta`` is the k-th smallest gap over prompts, k such that at most 2 % of prompts like these have a
    smaller one, with 95 % confidence; None for fewer than 149 prompts. It vouches for the openings given, no others.
    """
    gaps: dict[Prompt, float] = {}
    rows = load_rows(context.files["harmful_openings"], PromptCompletionRow)
    openings = [
        (row.prompt, Example(example.ids[:-1], example.completion_start))  # an opening does not end
        for row in rows
        for example in tokenise(subject.tokenizer, row.prompt, [row.completion], subject.context_length) or []
    ]
    require_rows(openings, len(rows), "spec.harmful_openings")
    measured = subject.critical_gaps([example for _, example in openings], "harmful_openings")
    for (prompt, _), gap in zip(openings, measured, strict=True):
        gaps[prompt] = min(gap, gaps.get(prompt, gap))
    ordered = sorted(gaps.values())
    k = metrics.certified_order(len(ordered))
    summary = {"critical_gap": ordered[0], "safe_set_delta": max(0.0, ordered[k - 1] - _MARGIN) if k else None}
    return Section(summary, {"prompts": len(ordered), "openings": len(openings), "gaps": ordered, "order": k}, [])


def measure_control(subject: Subject, context: RecipeContext) -> Section:
    """Attribute scores over a grid of preferences: what asking for an attribute does, and whether it matters."""
    spec = subject.spec
    names = spec.attributes
    grid = preference_grid(len(names), spec.preferences, stream_seed(spec.seed, _GRID)).tolist()
    prompts = _choose_prompts(spec, _load_prompts(context, "prompts"))
    questions = [
        Question(prompt, dict(zip(names, preference, strict=True)), (_CONTROL, row, column))
        for row, preference in enumerate(grid)
        for column, prompt in enumerate(prompts)
    ]
    answers = subject.answer(questions, "prompts")
    scores = [[answer.score.attributes[name] for name in names] for answer in answers]
    asked = [preference for preference in grid for _ in prompts]
    by_preference = _parts(scores, len(prompts))
    means = [metrics.mean_vector(part) for part in by_preference]
    correlations = [metrics.spearman([p[i] for p in grid], [z[i] for z in means]) for i in range(len(names))]
    summary = {
        "mip": metrics.mean_inner_product(asked, scores),
        "mip_shuffled": metrics.shuffled_inner_product(asked, scores),
        "spearman_mean": metrics.mean(correlations),
        "spearman_weakest": min(correlations),
        "degenerate": metrics.mean(answer.score.degenerate for answer in answers),
        "malformed": metrics.mean(answer.score.malformed for answer in answers),
        "kl_to_safe": metrics.mean(answer.divergence for answer in answers),
    }
    if len(grid) > len(names):  # the vertices come first, then the centroid
        summary |= _control_figures(by_preference[: len(names)], by_preference[len(names)])
    details = {
        "attributes": names,
        "spearman": dict(zip(names, correlations, strict=True)),
        "grid": [
            {"preference": p, "scores": mean, "answers": len(prompts)} for p, mean in zip(grid, means, strict=True)
        ],
    }
    return Section(summary, details, answers)


_SECTIONS: dict[str, Callable[[Subject, RecipeContext], Section]] = {
    "harmful_prompts": measure_attacks,
    "benign_pairs": measure_capability,
    "harmful_openings": measure_safe_set,
    "prompts": measure_control,
}
"""The measurement that each data set asks for, by its role in the spec."""


def _attack_figures(answers: Sequence[Answer]) -> dict[str, Any]:
    harmful = [answer.score.harmful for answer in answers]
    degenerate = [answer.score.degenerate for answer in answers]
    rate, either = metrics.attack_success(harmful, degenerate)
    return {
        "asr": asdict(rate),
        "asr_or_degenerate": asdict(either),
        "refusal": metrics.mean(answer.score.refusal for answer in answers),
        "degenerate": metrics.mean(degenerate),
    }


def _control_figures(one_hot: Sequence[Scores], uniform: Scores) -> dict[str, Any]:
    matrix = metrics.control_matrix(one_hot, uniform)
    return {
        "control_matrix": matrix,
        "one_hot_gain": metrics.mean(row[i] for i, row in enumerate(matrix)),
        "diagonal_dominance": metrics.diagonal_dominance(matrix),
        "dominant_rows": metrics.count_dominant_rows(matrix),
    }


def _vertices_and_centroid(names: Sequence[str]) -> dict[str, dict[str, float]]:
    return {name: {name: 1.0} for name in names} | {UNIFORM: dict.fromkeys(names, 1 / len(names))}


def _load_prompts(context: RecipeContext, role: str) -> list[Prompt]:
    return [row.prompt for row in load_rows(context.files[role], PromptRow)]


def _choose_prompts(spec: EvaluationRunSpec, prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts for every preference: all, or as many as asked for, drawn by the seed."""
    count = min(spec.prompts_per_preference, len(prompts))
    order = generator(spec.seed, _CHOICE)
    chosen = sorted(torch.randperm(len(prompts), generator=order)[:count].tolist())
    return [prompts[index] for index in chosen]


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
