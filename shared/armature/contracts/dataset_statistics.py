"""What a data set is like, counted in one pass: lengths, how labels agree, what is there twice."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from armature.contracts.answer_pairs import AnswerPairing
from armature.contracts.base import View
from armature.contracts.datasets import Lexicon, PreferenceRow, Prompt, PromptCompletionRow, RatedAnswer, Row
from armature.contracts.preferences import AttributeName
from armature.contracts.row_forms import labels_from_scores

REMEMBERED = 200_000
"""Rows whose digests are kept to find equal ones, and rated answers that may wait for a partner: so much memory and
no more."""


class Lengths(View):
    """Characters of a text column. Tokens depend on a tokenizer: the job that trains on the rows reports them."""

    min: int
    mean: float
    max: int


class AttributeStatistics(View):
    """How pairs are judged by one attribute."""

    labels: int = Field(description="pairs with a better response; of a lexicon, patterns")
    first_share: float | None = Field(None, description="of them, the share that prefers the first response")
    ties: int = Field(0, description="pairs judged to be equal")
    tie_share: float | None = Field(None, description="ties / (labels + ties)")


class DatasetStatistics(View):
    """What is known of a data set's rows."""

    rows: int
    characters: dict[str, Lengths] = Field(description="of prompts and of completions or responses")
    identical_row_share: float = Field(
        description=f"rows that say the same as an earlier one, among the first {REMEMBERED:,} different ones"
    )
    pairs: int | None = Field(None, description="of a preference data set; of rated answers, the pairs they make")
    unpaired_answers: int = Field(0, description="rated answers without a partner: training leaves them out")
    identical_answers: int = Field(0, description="pairs of two equal answers: ties in everything")
    attributes: dict[AttributeName, AttributeStatistics] = Field(default_factory=dict)
    agreement: dict[AttributeName, dict[AttributeName, float | None]] = Field(
        default_factory=dict, description="share of the pairs labelled by both in which both prefer the same response"
    )
    conflicting_share: float | None = Field(
        None, description="share of the pairs labelled by two or more in which two disagree"
    )

    def renamed(self, old: str, new: str) -> DatasetStatistics:
        """The same with another name for an attribute."""
        attributes = {new if name == old else name: value for name, value in self.attributes.items()}
        agreement = {
            new if row == old else row: {new if name == old else name: value for name, value in cells.items()}
            for row, cells in self.agreement.items()
        }
        return self.model_copy(update={"attributes": attributes, "agreement": agreement})


@dataclass
class _LengthCounter:
    count: int = 0
    total: int = 0
    min: int = 0
    max: int = 0

    def add(self, length: int) -> None:
        self.min = min(self.min, length) if self.count else length
        self.max = max(self.max, length)
        self.count += 1
        self.total += length

    def result(self) -> Lengths:
        return Lengths(min=self.min, mean=round(self.total / self.count, 2), max=self.max)


class _LabelCounter:
    """Counts over pairs: by attribute, and by two attributes at once."""

    def __init__(self) -> None:
        self.pairs = 0
        self._outcomes: dict[str, Counter[int | None]] = {}
        self._together: Counter[tuple[str, str]] = Counter()
        self._agreeing: Counter[tuple[str, str]] = Counter()
        self._comparable = self._conflicting = 0

    def __len__(self) -> int:
        return len(self._outcomes)

    def add(self, labels: Mapping[str, int | None]) -> None:
        self.pairs += 1
        for name, label in labels.items():
            self._outcomes.setdefault(name, Counter())[label] += 1
        given = sorted((name, label) for name, label in labels.items() if label is not None)
        for (first, one), (second, other) in itertools.combinations(given, 2):
            self._together[first, second] += 1
            self._agreeing[first, second] += one == other
        self._comparable += len(given) > 1
        self._conflicting += len({label for _, label in given}) > 1

    def attributes(self) -> dict[str, AttributeStatistics]:
        found = {}
        for name, outcomes in sorted(self._outcomes.items()):
            labels, ties = outcomes[0] + outcomes[1], outcomes[None]
            found[name] = AttributeStatistics(
                labels=labels,
                first_share=_share(outcomes[0], labels),
                ties=ties,
                tie_share=_share(ties, labels + ties),
            )
        return found

    def agreement(self) -> dict[str, dict[str, float | None]]:
        names = sorted(self._outcomes)
        return {
            row: {name: 1.0 if name == row else self._agreement(*sorted((row, name))) for name in names}
            for row in names
        }

    def conflicting_share(self) -> float | None:
        return _share(self._conflicting, self._comparable)

    def _agreement(self, first: str, second: str) -> float | None:
        return _share(self._agreeing[first, second], self._together[first, second])


class StatisticsCounter:
    """Counts rows as they pass."""

    def __init__(self) -> None:
        self._rows = self._identical_rows = self._identical_answers = 0
        self._lengths: dict[str, _LengthCounter] = {}
        self._seen: set[bytes] = set()
        self._labels = _LabelCounter()
        self._pairing = AnswerPairing[str](REMEMBERED)
        self._lexicon: dict[str, AttributeStatistics] = {}
        self._judges = False

    @property
    def attributes(self) -> int:
        """How many attributes were met."""
        return len(self._labels)

    def add(self, row: Row) -> bool:
        """Count a row; True if it is a pair of two equal answers."""
        self._rows += 1
        self._remember(row)
        if isinstance(row, Lexicon):
            self._lexicon = {
                name: AttributeStatistics(labels=len(patterns)) for name, patterns in row.attributes.items()
            }
            return False
        self._measure("prompt", _characters(row.prompt))  # type: ignore[attr-defined]
        if isinstance(row, PromptCompletionRow | RatedAnswer):
            self._measure("completion", len(row.completion))
        if isinstance(row, RatedAnswer):
            self._pair_up(row)
        if not isinstance(row, PreferenceRow):
            return False
        for response in row.responses:
            self._measure("response", len(response))
        same = row.responses[0] == row.responses[1]
        self._identical_answers += same
        self._labels.add(row.labels)
        return same

    def result(self) -> DatasetStatistics:
        """The figures."""
        judged = self._labels.pairs or self._pairing.waiting
        return DatasetStatistics(
            rows=self._rows,
            characters={name: counter.result() for name, counter in self._lengths.items()},
            identical_row_share=_share(self._identical_rows, self._identical_rows + len(self._seen)) or 0.0,
            pairs=self._labels.pairs if judged else None,
            unpaired_answers=self._pairing.waiting,
            identical_answers=self._identical_answers,
            attributes=self._lexicon or self._labels.attributes(),
            agreement=self._labels.agreement(),
            conflicting_share=self._labels.conflicting_share(),
        )

    def _remember(self, row: Row) -> None:
        digest = _digest(row.model_dump_json())
        if digest in self._seen:
            self._identical_rows += 1
        elif len(self._seen) < REMEMBERED:
            self._seen.add(digest)

    def _measure(self, column: str, characters: int) -> None:
        self._lengths.setdefault(column, _LengthCounter()).add(characters)

    def _pair_up(self, row: RatedAnswer) -> None:
        partner = self._pairing.offer(_digest(repr(row.prompt)), row.scores, "")
        if partner is not None:
            self._labels.add(labels_from_scores(partner[0], row.scores))


def _characters(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message.content) for message in prompt)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
