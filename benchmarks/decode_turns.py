"""``python -m benchmarks decode-turns``: steps of two checkouts' engines, asked in turns in one run.

Two runs of ``decode``, one after the other, differ by more than two neighbouring commits do: other work on the machine
slows one of them. Here each checkout's product is loaded in a process of its own, under this checkout's benchmark, and
both are asked for a run in turns, so that only ratios within a round count.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from armature.inference.malloc import keep_freed_memory
from benchmarks.decode import Contest
from benchmarks.pairing import ratio, spread, take_turns
from benchmarks.plan import Plan
from benchmarks.report import describe_machine
from benchmarks.shapes import choose_device

HERE = Path(__file__).parents[1]
_SOURCES = ("shared", "services/api", "services/worker", "services/decoder", "services/cli")
_ENGINES = ("plain", "twin", "late_split", "guarded")


def measure(plan: Plan, other: Path, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure this checkout's engines against those of ``other``.

    Returns:
        Machine, and by batch size and engine the ratio of a step here over one there, its quartiles over the rounds,
        and the median seconds of both.

    Raises:
        RuntimeError: A checkout can not be loaded, or its product does not fit this checkout's benchmark.
    """
    report: dict[str, Any] = {"machine": describe_machine(choose_device(plan.device)), "batch": {}}
    with ExitStack() as started:
        roots = {"here": HERE, "there": other.resolve()}
        checkouts = {name: started.enter_context(_Checkout(root, plan)) for name, root in roots.items()}
        for batch in plan.batches:
            report["batch"][str(batch)] = {engine: _compare(checkouts, batch, engine, plan) for engine in _ENGINES}
            progress(f"batch {batch}: {report['batch'][str(batch)]}")
    return report


def _compare(checkouts: dict[str, _Checkout], batch: int, engine: str, plan: Plan) -> dict[str, Any]:
    contenders = {name: partial(checkout.run, batch, engine) for name, checkout in checkouts.items()}
    times = take_turns(contenders, plan.rounds)
    return {
        "here_over_there": ratio(times, "here", "there"),
        "quartiles": spread(times, "here", "there"),
        "seconds": {name: statistics.median(seconds) for name, seconds in times.items()},
    }


class _Checkout:
    """A process that runs engines with the product of the checkout at ``root``."""

    def __init__(self, root: Path, plan: Plan) -> None:
        if not (root / "shared/armature").is_dir():
            raise RuntimeError(f"{root} is no checkout of this project")
        path = os.pathsep.join(map(str, [*(root / folder for folder in _SOURCES), HERE]))
        self._root = root
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.decode_turns", json.dumps(dataclasses.asdict(plan))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def __enter__(self) -> _Checkout:
        """Wait until its models are loaded."""
        self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self._process.communicate()

    def run(self, batch: int, engine: str) -> list[float]:
        """Decode one batch; returns the seconds of each step."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: there is no answer
            self._process.stdin.write(f"{json.dumps([batch, engine])}\n")
            self._process.stdin.flush()
        seconds: list[float] = self._answer()
        return seconds

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            self._process.communicate()
            raise RuntimeError(f"the product at {self._root} can not be measured by this checkout's benchmark")
        return json.loads(line)


def _serve(plan: Plan) -> None:
    """Load the models and say so, then run what each line of the standard input asks for."""
    keep_freed_memory()  # as a decoder does
    contest = Contest(plan)
    engines = {batch: contest.engines(batch) for batch in plan.batches}
    print(json.dumps("loaded"), flush=True)
    for line in sys.stdin:
        batch, engine = json.loads(line)
        print(json.dumps(engines[batch][engine]()), flush=True)


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    _serve(Plan(**{**fields, "batches": tuple(fields["batches"])}))
