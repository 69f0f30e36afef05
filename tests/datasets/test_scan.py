"""The scan of a file: statistics against plain counting, and bad lines wherever they are."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.contracts.datasets import PromptRow
from armature.contracts.file_scans import LINES, FileScan, LineProblem
from armature.datasets import statistics as dataset_statistics
from armature.datasets.files.text import MAX_ROW_CHARACTERS
from armature.datasets.row_reader import GoodLine, RowReader, read_rows
from armature.datasets.scan import scan_rows
from armature.errors import InvalidDataset

NAMES = ["care", "tact", "wit"]
LABELS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 1, None]), min_size=1)


def scan(*rows: Any) -> FileScan:
    return scan_rows(io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode()))


def pair(labels: dict[str, int | None], number: int = 0) -> dict[str, Any]:
    return {"prompt": f"question {number}", "responses": ["yes", "no"], "labels": labels}


@pytest.mark.trap(22)
@given(st.lists(LABELS, min_size=1, max_size=20))
def test_labels_agreements_conflicts_and_gaps_are_counted(
    labels: list[dict[str, int | None]],
) -> None:
    """The oracle: a matrix of -1 (first), +1 (second), 0 (tie) and NaN (no label), pairs by attributes."""
    said = {0: -1.0, 1: 1.0, None: 0.0}
    matrix = np.array([[said[row[name]] if name in row else np.nan for name in NAMES] for row in labels])
    found = scan(*(pair(row, number) for number, row in enumerate(labels))).statistics
    assert (found.rows, found.pairs, found.identical_row_share) == (len(labels), len(labels), 0.0)
    decided = np.abs(matrix) == 1
    for index, name in enumerate(NAMES):
        if np.isnan(matrix[:, index]).all():
            assert name not in found.attributes
            continue
        attribute, ties = found.attributes[name], int((matrix[:, index] == 0).sum())
        assert (attribute.labels, attribute.ties) == (int(decided[:, index].sum()), ties)
        assert attribute.tie_share == pytest.approx(ties / (ties + attribute.labels), abs=1e-6)
        if attribute.labels:
            assert attribute.first_share == pytest.approx((matrix[:, index] == -1).sum() / attribute.labels, abs=1e-6)
    for (i, one), (j, other) in itertools.product(enumerate(NAMES), repeat=2):
        both = decided[:, i] & decided[:, j]
        if one == other or not (one in found.agreement and other in found.agreement):
            continue
        agreeing = (matrix[both, i] == matrix[both, j]).mean() if both.any() else None
        assert found.agreement[one][other] == (None if agreeing is None else pytest.approx(agreeing, abs=1e-6))
    several = decided.sum(1) > 1
    torn = (matrix == -1).any(1) & (matrix == 1).any(1)
    share = torn[several].mean() if several.any() else None
    assert found.conflicting_share == (None if share is None else pytest.approx(share, abs=1e-6))


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=20))
def test_lengths_and_repeated_rows(prompts: list[str]) -> None:
    found = scan(*({"prompt": prompt} for prompt in prompts)).statistics
    lengths = [len(prompt) for prompt in prompts]
    assert found.characters["prompt"].model_dump() == {
        "min": min(lengths),
        "mean": pytest.approx(np.mean(lengths), abs=0.006),
        "max": max(lengths),
    }
    assert found.identical_row_share == pytest.approx(1 - len(set(prompts)) / len(prompts), abs=1e-6)


def test_answers_that_find_no_partner_are_counted() -> None:
    given = [("a", True), ("a", False), ("b", True), ("b", True), ("b", False)]
    rows = [{"prompt": prompt, "completion": f"{n}", "label": label} for n, (prompt, label) in enumerate(given)]
    found = scan(*rows)
    assert (found.format, found.needs_attribute) == ("unpaired_preference", True)
    statistics = found.statistics.renamed("overall", "wit")
    assert (statistics.rows, statistics.pairs, statistics.unpaired_answers) == (5, 2, 1)
    assert statistics.attributes["wit"].labels == 2
    assert statistics.agreement == {"wit": {"wit": 1.0}}
    assert [(warning.code, warning.count) for warning in found.validation.warnings] == [("unpaired_answers", 1)]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_statistics, "REMEMBERED", 3)
    rows = [{"prompt": f"{number}", "completion": "a", "label": True} for number in range(10)]
    found = scan(*rows, *rows[:3]).statistics
    assert found.unpaired_answers == 3
    assert found.identical_row_share == 0.5  # three of the six that could be compared


def test_a_lexicon_says_which_attributes_it_scores() -> None:
    found = scan({"attributes": {"wit": ["ha *", "ho"], "care": []}}).statistics
    assert {name: attribute.labels for name, attribute in found.attributes.items()} == {"wit": 2, "care": 0}
    assert found.pairs is None


def test_attributes_of_a_file_are_limited() -> None:
    rows = [pair({f"a{number}": 0}, number) for number in range(100)]
    (problem,) = scan(*rows).validation.errors
    assert (problem.line, problem.code) == (65, "too_many_attributes")


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_are_refused_line_by_line(content: bytes) -> None:
    found = scan_rows(io.BytesIO(content))
    lines = content.count(b"\n") + content.count(b"\r") + 1
    rows = lines if found.container in LINES else len(content)
    assert all(error.line is None or 1 <= error.line <= rows for error in found.validation.errors)
    assert found.validation.errors or found.statistics.rows


GOOD, BAD = b'{"prompt": "a"}', b'{"prompt": 1}'


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_every_bad_line_has_its_number(good: list[bool], end: bytes, closed: bool) -> None:
    content = end.join(GOOD if ok else BAD for ok in good) + (end if closed else b"")
    seen = list(RowReader(io.BytesIO(content)).read())
    assert [line.number for line in seen if isinstance(line, GoodLine)] == [n for n, ok in enumerate(good, 1) if ok]
    bad = [number for number, ok in enumerate(good, 1) if not ok]
    assert [line.line for line in seen if isinstance(line, LineProblem)] == bad
    if bad:
        with pytest.raises(InvalidDataset, match=f"line {bad[0]}: prompt"):
            list(read_rows(io.BytesIO(content), PromptRow))
    else:
        assert len(list(read_rows(io.BytesIO(content), PromptRow))) == len(good)


class OneLongLine(io.RawIOBase):
    """A good line, one of 200 MB, and another good one, none of them kept in memory."""

    LINES = (GOOD + b"\n" + b'{"prompt": "', 200_000_000, b'"}\n' + GOOD)

    def __init__(self) -> None:
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        head, size, tail = self.LINES
        self._position = offset if whence == 0 else len(head) + size + len(tail)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        head, size, tail = self.LINES
        start = self._position
        if start < len(head):
            data = head[start:]
        elif start < len(head) + size:
            data = b"x" * min(len(buffer), size - start + len(head))
        else:
            data = tail[start - len(head) - size :]
        data = data[: len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def test_a_long_line_is_cut_and_the_next_keeps_its_number() -> None:
    tracemalloc.start()
    try:
        seen = list(RowReader(OneLongLine()).read())  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(line.line, line.code) for line in seen if isinstance(line, LineProblem)] == [(2, "row_too_long")]
    assert [line.number for line in seen if isinstance(line, GoodLine)] == [1, 3]
    assert peak < 8 * MAX_ROW_CHARACTERS
