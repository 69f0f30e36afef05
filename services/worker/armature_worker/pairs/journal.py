"""The finished work of a long job by key, saved as checkpoints, so that no attempt repeats any."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from armature_worker.context.ports import Interrupted, RecipeContext

T = TypeVar("T")
_FILE = "journal.jsonl"


class Journal:
    """Results by key.

    Args:
        context: The job's.
        every: Batches between two checkpoints.
    """

    def __init__(self, context: RecipeContext, every: int) -> None:
        self._context, self._every = context, every
        self._folder = context.workdir / "journal"
        self._folder.mkdir()
        self._results: dict[str, Any] = {}
        self._batches = 0
        if saved := context.load_checkpoint():
            lines = (saved.path / _FILE).read_text(encoding="utf-8").split("\n")
            self._write({line["key"]: line["result"] for line in map(json.loads, filter(None, lines))})
            context.log(f"resumed after {len(self._results)} results")

    def complete(
        self, phase: str, tasks: Mapping[str, T], compute: Callable[[Sequence[T]], Sequence[Any]], batch: int
    ) -> list[Any]:
        """Return the result of every task in order; compute the missing ones.

        Args:
            phase: The phase to report progress in.
            tasks: The tasks by key. A key names its task in all attempts of the job.
            compute: From tasks to their results, which are JSON values.
            batch: Tasks computed at once.
        """
        listed = list(tasks)
        for start in range(0, len(listed), batch):  # the same batches in every attempt: neighbours round differently
            keys = [key for key in listed[start : start + batch] if key not in self._results]
            if not keys:
                continue
            self._report(phase, start, len(tasks))
            self._write(dict(zip(keys, compute([tasks[key] for key in keys]), strict=True)))
            self._batches += 1
            if self._batches % self._every == 0:
                self._save()
        self._report(phase, len(tasks), len(tasks))
        return [self._results[key] for key in tasks]

    def _report(self, phase: str, done: int, total: int) -> None:
        try:
            self._context.progress(phase, done, total)
        except Interrupted:
            self._save()
            raise

    def _write(self, results: Mapping[str, Any]) -> None:
        self._results |= results
        with (self._folder / _FILE).open("a", encoding="utf-8") as file:
            for key, result in results.items():
                file.write(json.dumps({"key": key, "result": result}) + "\n")

    def _save(self) -> None:
        if self._results:
            self._context.save_checkpoint(len(self._results), self._folder)
