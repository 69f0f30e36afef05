"""Statistics of a data set, counted in one pass: lengths, agreement of labels, duplicates."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from armature.contracts.datasets import Lexicon, PreferenceRow, Prompt, PromptCompletionRow, RatedAnswer, Row
from armature.contracts.file_scans import REMEMBERED, AttributeStatistics, DatasetStatistics, Lengths
from armature.datasets.answer_pairs import AnswerPairing
from armature.datasets.labels import labels_from_scores


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
    """Counts of labels over pairs: by attribute, and by two attributes together."""

    def __init__(self) -> None:
        self.pairs = 0
        self._outcomes: dict[str, Counter[int | None]] = {}
        self._co_labelled: Counter[tuple[str, str]] = Counter()
        self._agreeing: Counter[tuple[str, str]] = Counter()
        self._comparable = self._conflicting = 0

    def __len__(self) -> int:
        return len(self._outcomes)

    def add(self, labels: Mapping[str, int | None]) -> None:
        self.pairs += 1
        for name, label in labels.items():
            self._outcomes.setdefault(name, Counter())[label] += 1
        decided = sorted((name, label) for name, label in labels.items() if label is not None)
        for (first, one), (second, other) in itertools.combinations(decided, 2):
            self._co_labelled[first, second] += 1
            self._agreeing[first, second] += one == other
        self._comparable += len(decided) > 1
        self._conflicting += len({label for _, label in decided}) > 1

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
        return _share(self._agreeing[first, second], self._co_labelled[first, second])


class StatisticsCounter:
    """A one-pass counter of a data set's statistics."""

    def __init__(self) -> None:
        self._rows = self._identical_rows = self._identical_answers = 0
        self._lengths: dict[str, _LengthCounter] = {}
        self._seen: set[bytes] = set()
        self._labels = _LabelCounter()
        self._pairing = AnswerPairing[str](REMEMBERED)
        self._lexicon: dict[str, AttributeStatistics] = {}

    @property
    def rows(self) -> int:
        """The number of rows added so far."""
        return self._rows

    @property
    def attributes(self) -> int:
        """The number of attributes seen so far."""
        return len(self._labels)

    def add(self, rows: Sequence[Row]) -> bool:
        """Count a row of the file, as the rows it gives to jobs; True if one is a pair of two equal answers."""
        self._rows += 1
        self._remember(rows)
        return True in [self._count(row) for row in rows]

    def _count(self, row: Row) -> bool:
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
        """Return the statistics of the rows added so far."""
        has_answers = self._labels.pairs or self._pairing.waiting
        return DatasetStatistics(
            rows=self._rows,
            characters={name: counter.result() for name, counter in self._lengths.items()},
            identical_row_share=_share(self._identical_rows, self._identical_rows + len(self._seen)) or 0.0,
            pairs=self._labels.pairs if has_answers else None,
            unpaired_answers=self._pairing.waiting,
            identical_answers=self._identical_answers,
            attributes=self._lexicon or self._labels.attributes(),
            agreement=self._labels.agreement(),
            conflicting_share=self._labels.conflicting_share(),
        )

    def _remember(self, rows: Sequence[Row]) -> None:
        digest = _digest("\n".join(row.model_dump_json() for row in rows))
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
