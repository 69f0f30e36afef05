"""Pairing of individually rated answers into preference rows."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from armature.contracts.datasets import PreferenceRow, RatedAnswer
from armature.datasets.labels import labels_from_scores

Kept = TypeVar("Kept")
Scores = Mapping[str, float]

_MAX_GROUPS = 64
"""Distinct ratings of one prompt that are searched for a partner; bounds the time per row on degenerate data."""


class AnswerPairing(Generic[Kept]):
    """A one-pass pairing of answers to the same prompt that differ in some attribute's score.

    Every answer is used at most once. Later rows never change a pair, so one pass over a file is enough.

    Args:
        limit: Number of answers that may wait for a partner; beyond it new ones are not kept.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.waiting = 0
        self._limit = limit
        self._by_prompt: dict[Hashable, dict[frozenset[tuple[str, float]], deque[Kept]]] = {}

    def offer(self, prompt: Hashable, scores: Scores, answer: Kept) -> tuple[Scores, Kept] | None:
        """Return the partner's scores and its stored answer; None if ``answer`` waits for a partner."""
        groups = self._by_prompt.setdefault(prompt, {})
        for rating in itertools.islice(groups, _MAX_GROUPS):
            others = dict(rating)
            if any(label is not None for label in labels_from_scores(others, scores).values()):
                self.waiting -= 1
                partner = groups[rating].popleft()
                if not groups[rating]:
                    del groups[rating]
                return others, partner
        if self._limit is None or self.waiting < self._limit:
            groups.setdefault(frozenset(scores.items()), deque()).append(answer)
            self.waiting += 1
        return None


def pair_answers(rows: Iterable[RatedAnswer | PreferenceRow]) -> Iterator[PreferenceRow]:
    """Yield the pairs among ``rows``: preference rows as they are, and paired rated answers.

    The earlier answer comes first. Answers without a partner are dropped.
    """
    pairing = AnswerPairing[str]()
    for row in rows:
        if isinstance(row, PreferenceRow):
            yield row
        elif (partner := pairing.offer(row.prompt, row.scores, row.completion)) is not None:
            scores, completion = partner
            labels = labels_from_scores(scores, row.scores)
            yield PreferenceRow(prompt=row.prompt, responses=[completion, row.completion], labels=labels)
