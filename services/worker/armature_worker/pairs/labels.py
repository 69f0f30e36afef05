"""From screened pairs to labelled rows: the judges' filter, cross labels and hard pairs.

The order of a row's answers is drawn from the seed before any judge sees them, so neither a judge nor a row tells the
side written for an attribute from the side written against it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from armature.algorithms.near_duplicates import jaccard, shingles
from armature.contracts.datasets import Prompt
from armature.contracts.specs.pairs import PairsGenerateSpec
from armature.modeling.tokenization.dialogues import as_messages
from armature_worker.data.tokenized import generator, stream_seed
from armature_worker.judging.port import Comparison, Verdict
from armature_worker.pairs.screening import Candidate
from armature_worker.pairs.texts import fit_lengths

_ORDER, _HARD_ORDER, _HARD_CHOICE = 2, 3, 4
"""Numbers of the random streams."""

Grade = Callable[[str, Sequence[Comparison]], list[list[Verdict]]]
"""(phase, comparisons) -> the verdict of every judge on each of them."""


@dataclass(frozen=True)
class LabelledRow:
    """A row of the data set; its provenance, ``teachers`` and ``written_for``, tells no side apart."""

    id: str
    prompt: Prompt
    responses: tuple[str, str]
    written_for: tuple[str, ...]
    teachers: tuple[int, ...]
    labels: dict[str, int | None] = field(default_factory=dict)
    margins: dict[str, float | None] = field(default_factory=dict)
    """The first judge's margins by attribute; positive: the first response."""

    def as_json(self, teacher_names: Sequence[str]) -> dict[str, Any]:
        """Format the row as a line of the data set."""
        return {
            "id": self.id,
            "prompt": self.prompt if isinstance(self.prompt, str) else as_messages(self.prompt),
            "responses": list(self.responses),
            "labels": self.labels,
            "margin": self.margins,
            "written_for": list(self.written_for),
            "teachers": [teacher_names[teacher] for teacher in self.teachers],
        }


@dataclass(frozen=True)
class Judged:
    """A candidate, its answers' order and the verdicts; ``better`` is the place of the side written for."""

    candidate: Candidate
    responses: tuple[str, str]
    better: int
    verdicts: Sequence[Verdict]

    def is_kept(self, spec: PairsGenerateSpec) -> bool:
        """Whether every judge prefers the side written for the attribute; without judges, every pair is kept."""
        return all(
            verdict.choice(judge.min_margin) == self.better
            for verdict, judge in zip(self.verdicts, spec.judges, strict=True)
        )

    def as_row(self) -> LabelledRow:
        """Label the pair for its attribute."""
        plan = self.candidate.plan
        margins = {plan.attribute: self.verdicts[0].margin} if self.verdicts else {}
        return LabelledRow(
            f"pair-{plan.number}",
            plan.prompt,
            self.responses,
            (plan.attribute,),
            (plan.teacher,),
            {plan.attribute: self.better},
            margins,
        )


def judge_candidates(spec: PairsGenerateSpec, candidates: Sequence[Candidate], grade: Grade) -> list[Judged]:
    """Draw the order of each candidate's answers and have every judge compare them."""
    ordered = []
    for candidate in candidates:
        better = stream_seed(spec.seed, _ORDER, candidate.plan.number) % 2
        ordered.append((candidate, _placed(candidate.texts, better), better))
    comparisons = [
        Comparison(plan.prompt, responses, plan.attribute, spec.rubric(plan.attribute), plan.wording)
        for plan, responses in ((candidate.plan, responses) for candidate, responses, _ in ordered)
    ]
    verdicts = grade("judge", comparisons)
    return [
        Judged(candidate, responses, better, given)
        for (candidate, responses, better), given in zip(ordered, verdicts, strict=True)
    ]


def label_across(spec: PairsGenerateSpec, kept: Sequence[Judged], grade: Grade) -> list[LabelledRow]:
    """Label each pair for the other attributes too; null unless all judges agree beyond a tie."""
    rows = [judged.as_row() for judged in kept]
    if not spec.cross_label:
        return rows
    asked = [
        (row, Comparison(row.prompt, row.responses, name, spec.rubric(name), judged.candidate.plan.wording))
        for row, judged in zip(rows, kept, strict=True)
        for name in spec.attributes
        if name not in row.labels
    ]
    verdicts = grade("label", [comparison for _, comparison in asked])
    for (row, comparison), given in zip(asked, verdicts, strict=True):
        row.labels[comparison.attribute] = consensus(spec, given)
        row.margins[comparison.attribute] = given[0].margin
    return rows


def make_hard_pairs(spec: PairsGenerateSpec, kept: Sequence[Judged], grade: Grade) -> list[LabelledRow]:
    """Pair answers written for different attributes; keep a pair if the judges find each ahead in its own."""
    rows = list(_hard_rows(spec, kept))
    comparisons = [
        Comparison(row.prompt, row.responses, name, spec.rubric(name)) for row in rows for name in row.written_for
    ]
    verdicts = iter(grade("label", comparisons))
    agreed = []
    for row in rows:
        own = {name: next(verdicts) for name in row.written_for}
        if all(consensus(spec, given) == row.labels[name] for name, given in own.items()):
            row.margins.update({name: given[0].margin for name, given in own.items()})
            agreed.append(row)
    return agreed


def consensus(spec: PairsGenerateSpec, verdicts: Sequence[Verdict]) -> int | None:
    """Return the answer that every judge prefers; None if they differ or one finds a tie."""
    choices = {verdict.choice(judge.min_margin) for verdict, judge in zip(verdicts, spec.judges, strict=True)}
    return choices.pop() if len(choices) == 1 else None


def _placed(texts: tuple[str, str], place: int) -> tuple[str, str]:
    """Order two texts so that the first of them comes at ``place``."""
    return texts if place == 0 else (texts[1], texts[0])


def _hard_rows(spec: PairsGenerateSpec, kept: Sequence[Judged]) -> Iterator[LabelledRow]:
    """Yield pairs of two attributes' answers to one prompt, with the labels to be confirmed."""
    by_prompt: defaultdict[int, list[Candidate]] = defaultdict(list)
    for judged in kept:
        by_prompt[judged.candidate.plan.prompt_number].append(judged.candidate)
    for number, candidates in by_prompt.items():
        pairs = [
            (first, second)
            for first, second in combinations(candidates, 2)
            if first.plan.attribute != second.plan.attribute
        ]
        for place in _choose(len(pairs), spec.hard_pairs_per_prompt, stream_seed(spec.seed, _HARD_CHOICE, number)):
            row = _hard_row(spec, *pairs[place])
            if row is not None:
                yield row


def _choose(count: int, wanted: int, seed: int) -> list[int]:
    return sorted(torch.randperm(count, generator=generator(seed))[:wanted].tolist())


def _hard_row(spec: PairsGenerateSpec, first: Candidate, second: Candidate) -> LabelledRow | None:
    """Make the row; None if the two answers do not pass the screen as a pair."""
    one, other = first.plan, second.plan
    texts = fit_lengths(first.texts[0], second.texts[0], spec.screen.max_length_ratio)
    if texts is None or min(map(len, texts)) < spec.screen.min_characters:
        return None
    if jaccard(*map(shingles, texts)) > spec.screen.max_similarity:
        return None
    swap = stream_seed(spec.seed, _HARD_ORDER, one.number, other.number) % 2
    return LabelledRow(
        f"hard-{one.number}-{other.number}",
        one.prompt,
        _placed(texts, swap),
        tuple(sorted((one.attribute, other.attribute))),
        tuple(sorted({one.teacher, other.teacher})),
        {one.attribute: swap, other.attribute: 1 - swap},
    )
