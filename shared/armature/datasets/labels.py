"""Labels of two answers, from their scores by attribute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from armature.contracts.datasets import PreferenceRow

Scores = Mapping[str, float]


def labels_from_scores(first: Scores, second: Scores) -> dict[str, int | None]:
    """Label two answers in each attribute scored in both: the index of the higher score, None for a tie."""
    shared = [name for name in first if name in second]
    return {name: None if first[name] == second[name] else int(second[name] > first[name]) for name in shared}


def labelled_pair(prompt: Any, responses: Sequence[str], labels: Mapping[str, int | None]) -> PreferenceRow:
    """Build a pair; two equal answers are a tie in every attribute, as they carry no preference."""
    same = responses[0] == responses[1]
    return PreferenceRow(
        prompt=prompt, responses=list(responses), labels=dict.fromkeys(labels, None) if same else dict(labels)
    )


def outermost_pairs(answers: Iterable[tuple[str, Scores]]) -> list[tuple[tuple[str, Scores], tuple[str, Scores]]]:
    """Pair answers to one prompt by rank: best with worst, second with last but one, and so on.

    The rank is the sum of the scores. Every answer is used at most once, so that no text weighs more than another, and
    the pairs differ as much as they can; an answer of middle rank has no partner, nor have answers of one rank.
    """
    ranked = sorted(answers, key=lambda answer: -sum(answer[1].values()))
    pairs = [(ranked[index], ranked[-1 - index]) for index in range(len(ranked) // 2)]
    return [(better, worse) for better, worse in pairs if dict(better[1]) != dict(worse[1])]
