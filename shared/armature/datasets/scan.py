"""The scan of a whole file of rows, in one pass: format, bad rows, statistics, warnings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from armature.contracts.datasets import MAX_ATTRIBUTES, Row
from armature.contracts.file_scans import (
    MAX_PROBLEMS,
    SHOWN_PROBLEMS,
    FileScan,
    FileValidation,
    LineProblem,
)
from armature.datasets.row_reader import GoodLine, RowReader
from armature.datasets.statistics import StatisticsCounter
from armature.datasets.warnings import warnings_of

MAX_IDENTICAL_ANSWERS = 0.5
"""Share of pairs of two equal answers above which a file is refused: their labels carry no information."""


def scan_rows(file: BinaryIO, max_bytes: int | None = None) -> FileScan:
    """Scan a file of rows to its end, or to the :data:`MAX_PROBLEMS`-th bad row if those are the most.

    Args:
        file: Opened for reading bytes, seekable.
        max_bytes: Bytes that the rows may have once they are unpacked.
    """
    reader, counter = RowReader(file, max_bytes=max_bytes), StatisticsCounter()
    problems: list[LineProblem] = []
    count, skippable = 0, True
    for problem in _problems(reader, counter):
        count += 1
        skippable = skippable and problem.of_a_row
        if count <= SHOWN_PROBLEMS:
            problems.append(problem)
        if count >= MAX_PROBLEMS and count > counter.rows:
            skippable = False
            break
    statistics, shape = counter.result(), reader.shape
    return FileScan(
        format=shape.form.format if shape else None,
        form=shape.form.name if shape else None,
        container=reader.container,
        conversational=bool(shape and shape.conversational),
        needs_attribute=bool(shape and shape.needs_attribute),
        validation=FileValidation(
            errors=problems,
            error_count=count,
            skippable=bool(count) and skippable,
            warnings=warnings_of(reader, statistics),
        ),
        statistics=statistics,
    )


def first_rows(file: BinaryIO, count: int) -> list[Row]:
    """Return the first rows that a file gives to jobs."""
    lines = (line for line in RowReader(file).read() if isinstance(line, GoodLine))
    return list(islice((row for line in lines for row in line.rows), count))


def _problems(reader: RowReader, counter: StatisticsCounter) -> Iterator[LineProblem]:
    """Yield the bad rows in order, then the errors of the valid rows as a whole."""
    first_identical: GoodLine | None = None
    bad = False
    for line in reader.read():
        if isinstance(line, LineProblem):
            bad = True
            yield line
            continue
        if line.rows and counter.add(line.rows):
            first_identical = first_identical or line
        if counter.attributes > MAX_ATTRIBUTES:
            yield _of_the_file(line, "too_many_attributes", f"more than {MAX_ATTRIBUTES} attributes")
            return
    statistics = counter.result()
    if first_identical and statistics.identical_answers > MAX_IDENTICAL_ANSWERS * statistics.rows:
        message = f"{statistics.identical_answers} of {statistics.rows} pairs have two equal answers"
        yield _of_the_file(first_identical, "identical_answers", message)
    if not statistics.rows and not bad:
        yield _of_the_file(None, "no_rows", "no row of the file has anything to use")


def _of_the_file(line: GoodLine | None, code: str, message: str) -> LineProblem:
    return LineProblem(line=line.number if line else None, code=code, message=message, of_a_row=False)
