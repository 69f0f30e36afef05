"""What became of the pairs of each attribute, and how far judges, labels and human labels agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from armature.algorithms.agreement import cohen_kappa
from armature.contracts.datasets import PreferenceRow, Prompt
from armature.contracts.pairs import AttributePairs, JudgeAgreement
from armature.contracts.specs.pairs import PairsGenerateSpec
from armature_worker.judging.port import Comparison, Verdict
from armature_worker.pairs.labels import Grade, Judged, LabelledRow
from armature_worker.pairs.screening import Dropped

Choices = list[tuple[int | None, int | None]]
"""The human label and the other verdict, by item."""


class HumanLabels:
    """Labels by people, beside the judges' verdicts on the same answers and the labels of equal rows."""

    def __init__(self, spec: PairsGenerateSpec, rows: Sequence[PreferenceRow]) -> None:
        self._spec = spec
        self._items = [(row, name, row.labels[name]) for row in rows for name in spec.attributes if name in row.labels]
        self._by_judge: defaultdict[tuple[str, int], Choices] = defaultdict(list)

    def ask_judges(self, grade: Grade) -> None:
        """Have every judge compare the answers that have human labels."""
        comparisons = [
            Comparison(row.prompt, (row.responses[0], row.responses[1]), name, self._spec.rubric(name))
            for row, name, _ in self._items
        ]
        for (_, name, label), verdicts in zip(self._items, grade("label", comparisons), strict=True):
            for index, (verdict, judge) in enumerate(zip(verdicts, self._spec.judges, strict=True)):
                self._by_judge[name, index].append((label, verdict.choice(judge.min_margin)))

    def of_judge(self, attribute: str, judge: int) -> Choices:
        """Return the human labels for an attribute beside a judge's verdicts."""
        return self._by_judge[attribute, judge]

    def of_rows(self, attribute: str, rows: Sequence[LabelledRow]) -> Choices:
        """Return the human labels for an attribute beside the labels of rows with the same prompt and answers."""
        labels: dict[tuple[Prompt, tuple[str, ...]], int | None] = {}
        for row in rows:
            if attribute in row.labels:
                label = row.labels[attribute]
                labels[row.prompt, row.responses] = label
                labels[row.prompt, row.responses[::-1]] = None if label is None else 1 - label
        return [
            (label, labels[row.prompt, tuple(row.responses)])
            for row, name, label in self._items
            if name == attribute and (row.prompt, tuple(row.responses)) in labels
        ]


def describe_attribute(
    spec: PairsGenerateSpec,
    attribute: str,
    judged: Sequence[Judged],
    dropped: Sequence[Dropped],
    rows: Sequence[LabelledRow],
    humans: HumanLabels,
) -> AttributePairs:
    """Describe what became of an attribute's pairs.

    Args:
        spec: The job's.
        attribute: The attribute.
        judged: All pairs that the judges saw.
        dropped: All pairs that the screen dropped.
        rows: All rows of both data sets.
        humans: The human labels, if any.
    """
    own = [one for one in judged if one.candidate.plan.attribute == attribute]
    kept = [one for one in own if one.is_kept(spec)]
    reasons = Counter(one.reason for one in dropped if one.plan.attribute == attribute)
    if len(own) > len(kept):
        reasons["judges"] = len(own) - len(kept)
    lengths = [tuple(map(len, one.candidate.texts)) for one in kept]
    compared = humans.of_rows(attribute, rows)
    return AttributePairs(
        written=len(kept) + reasons.total(),
        kept=len(kept),
        dropped=dict(sorted(reasons.items())),
        characters_for=_mean([first for first, _ in lengths]),
        characters_against=_mean([second for _, second in lengths]),
        longer_for=_mean([float(first > second) for first, second in lengths]),
        judges=[
            _judge_agreement(judge.min_margin, index, own, humans.of_judge(attribute, index))
            for index, judge in enumerate(spec.judges)
        ],
        kappa=_kappa(compared),
        kappa_pairs=len(compared),
    )


def _judge_agreement(min_margin: float, index: int, own: Sequence[Judged], humans: Choices) -> JudgeAgreement:
    verdicts = [(one.verdicts[index], one.better) for one in own]
    read = [(verdict, better) for verdict, better in verdicts if verdict.margin is not None]
    choices = Counter(_outcome(verdict, min_margin, better) for verdict, better in read)
    orders = [verdict.orders_agree for verdict, _ in read if verdict.orders_agree is not None]
    return JudgeAgreement(
        asked=len(verdicts),
        agreed=choices["agreed"],
        tied=choices["tied"],
        opposed=choices["opposed"],
        unparsed=len(verdicts) - len(read),
        orders_agreed=_mean(orders),
        kappa=_kappa(humans),
        kappa_pairs=len(humans),
    )


def _outcome(verdict: Verdict, min_margin: float, better: int) -> str:
    choice = verdict.choice(min_margin)
    if choice is None:
        return "tied"
    return "agreed" if choice == better else "opposed"


def _kappa(choices: Choices) -> float | None:
    return cohen_kappa([human for human, _ in choices], [other for _, other in choices])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
