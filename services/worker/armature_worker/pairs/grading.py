"""Every judge's verdict on every comparison, each asked for once, one judge in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

from armature.contracts.specs.pairs import PairsGenerateSpec
from armature_worker.context.ports import RecipeContext
from armature_worker.judging.opening import open_judge
from armature_worker.judging.port import Comparison, Verdict
from armature_worker.pairs.journal import Journal


class Grader:
    """The judges of a spec."""

    def __init__(self, spec: PairsGenerateSpec, context: RecipeContext, journal: Journal) -> None:
        self._spec, self._context, self._journal = spec, context, journal

    def grade(self, phase: str, comparisons: Sequence[Comparison]) -> list[list[Verdict]]:
        """Return each judge's verdict on each comparison; report progress in ``phase``."""
        by_judge = [self._ask(index, phase, comparisons) for index in range(len(self._spec.judges))]
        return [[verdicts[place] for verdicts in by_judge] for place in range(len(comparisons))]

    def _ask(self, index: int, phase: str, comparisons: Sequence[Comparison]) -> list[Verdict]:
        opened = None

        def compare(batch: Sequence[Comparison]) -> list[tuple[float | None, bool | None]]:
            nonlocal opened
            opened = opened or open_judge(self._spec, index, self._context)
            return [(verdict.margin, verdict.orders_agree) for verdict in opened.compare(batch)]

        keys = [f"verdict/{index}/{comparison.key}" for comparison in comparisons]
        tasks = dict(zip(keys, comparisons, strict=True))
        results = self._journal.complete(phase, tasks, compare, self._spec.sampling.batch_size)
        by_key = dict(zip(tasks, results, strict=True))
        return [Verdict(*by_key[key]) for key in keys]
