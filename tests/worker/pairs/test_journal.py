"""The journal computes each task once, in the same batches however often the job was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from armature_worker.context.local import LocalContext
from armature_worker.context.ports import JobPaused
from armature_worker.pairs.journal import Journal

TASKS = {f"task-{number}": number for number in range(7)}


def context(folder: Path, attempt: int, stop_at: int | None = None) -> LocalContext:
    def stop(_phase: str, step: int) -> None:
        if step == stop_at:
            raise JobPaused

    workdir = folder / f"attempt-{attempt}"
    workdir.mkdir()
    return LocalContext(workdir, checkpoints=folder / "checkpoints", on_progress=stop)


def test_a_stopped_job_repeats_nothing_and_keeps_its_batches(tmp_path: Path) -> None:
    batches: list[list[int]] = []

    def square(numbers: Sequence[int]) -> list[int]:
        batches.append(list(numbers))
        return [number**2 for number in numbers]

    with pytest.raises(JobPaused):
        Journal(context(tmp_path, 1, stop_at=4), every=100).complete("judge", TASKS, square, 2)
    assert batches == [[0, 1], [2, 3]]
    again = context(tmp_path, 2)
    assert Journal(again, every=100).complete("judge", TASKS, square, 2) == [number**2 for number in range(7)]
    assert batches == [[0, 1], [2, 3], [4, 5], [6]]
    assert ("info", "resumed after 4 results") in again.messages


def test_checkpoints_come_every_so_many_batches(tmp_path: Path) -> None:
    Journal(context(tmp_path, 1), every=3).complete("judge", TASKS, list, 2)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert saved.name == "6"
    shuffled = dict(reversed(TASKS.items()))
    assert Journal(context(tmp_path, 2), every=3).complete("judge", shuffled, list, 2) == [*range(6, -1, -1)]
