"""The scan of a whole file of rows, in one pass and bounded memory: format, bad lines, statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from armature.contracts.datasets import MAX_ATTRIBUTES
from armature.contracts.file_scans import (
    MAX_PROBLEMS,
    SHOWN_PROBLEMS,
    DatasetStatistics,
    FileScan,
    FileValidation,
    LineProblem,
    RowWarning,
)
from armature.datasets.row_reader import GoodLine, RowReader
from armature.datasets.statistics import StatisticsCounter

MAX_IDENTICAL_ANSWERS = 0.5
"""Share of pairs of two equal answers above which a file is refused: their labels carry no information."""


def scan_rows(file: BinaryIO) -> FileScan:
    """Scan a file of rows, opened for reading bytes, to its end or its :data:`MAX_PROBLEMS`-th bad line."""
    reader, counter = RowReader(file), StatisticsCounter()
    problems: list[LineProblem] = []
    count = 0
    for problem in _problems(reader, counter):
        count += 1
        if count <= SHOWN_PROBLEMS:
            problems.append(problem)
        if count == MAX_PROBLEMS:
            break
    statistics, shape = counter.result(), reader.shape
    return FileScan(
        format=shape.form.format if shape else None,
        conversational=bool(shape and shape.conversational),
        needs_attribute=bool(shape and shape.needs_attribute),
        validation=FileValidation(errors=problems, error_count=count, warnings=_warnings(statistics)),
        statistics=statistics,
    )


def _problems(reader: RowReader, counter: StatisticsCounter) -> Iterator[LineProblem]:
    """Yield the bad lines in order, then the errors of the valid rows as a whole."""
    first_identical: GoodLine | None = None
    for line in reader.read():
        if isinstance(line, LineProblem):
            yield line
            continue
        if counter.add(line.row):
            first_identical = first_identical or line
        if counter.attributes > MAX_ATTRIBUTES:
            message = f"more than {MAX_ATTRIBUTES} attributes"
            yield LineProblem(line=line.number, code="too_many_attributes", message=message)
            return
    statistics = counter.result()
    if first_identical and statistics.identical_answers > MAX_IDENTICAL_ANSWERS * statistics.rows:
        message = f"{statistics.identical_answers} of {statistics.rows} pairs have two equal answers"
        yield LineProblem(line=first_identical.number, code="identical_answers", message=message)


def _warnings(statistics: DatasetStatistics) -> list[RowWarning]:
    identical_rows = round(statistics.identical_row_share * statistics.rows)
    found = (
        ("identical_answers", statistics.identical_answers, "pairs have two equal answers, which train nothing"),
        ("identical_rows", identical_rows, "rows repeat an earlier row"),
        ("unpaired_answers", statistics.unpaired_answers, "rated answers have no partner with the same prompt"),
    )
    return [RowWarning(code=code, message=message, count=count) for code, count, message in found if count]
