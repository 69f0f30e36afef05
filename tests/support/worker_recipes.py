"""A recipe for the fault tests: it takes real time and keeps notes on disk.

A worker process that is started with ``-I tests.support.worker_recipes`` knows it as job kind ``test.work``. The spec's
``name`` says how it behaves, ``source.path`` where it takes notes.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from armature.contracts.artifacts import ReportMetadata
from armature.contracts.specs import BaseModelImportSpec
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.recipes import RECIPES

STEPS = 20
STEP_SECONDS = 0.15


def run(spec: BaseModelImportSpec, context: RecipeContext) -> RecipeResult:
    """Behave as the spec's name says."""

    def note(line: str) -> None:
        with Path(spec.source.path).open("a") as file:
            file.write(line + "\n")

    folder = context.workdir / "report"
    folder.mkdir()
    (folder / "result.txt").write_text(_BEHAVIOURS[spec.name](context, note))
    return RecipeResult([Output("report", folder, ReportMetadata(subject={}, metrics={}))])


def _quick(context: RecipeContext, note: Callable[[str], None]) -> str:
    note(f"ran {context.job_id}")
    return "quick"


def _training(context: RecipeContext, note: Callable[[str], None]) -> str:
    """Sum the steps, saving the position after each."""
    found = context.load_checkpoint()
    first, total = (found.step + 1, int((found.path / "sum").read_text())) if found else (1, 0)
    note(f"began {first} {os.getpid()} {os.getppid()}")
    for step in range(first, STEPS + 1):
        time.sleep(STEP_SECONDS)
        total += step
        folder = context.workdir / f"{step}"
        folder.mkdir()
        (folder / "sum").write_text(str(total))
        context.save_checkpoint(step, folder)
        note(f"saved {step}")
        context.progress("train", step, STEPS)
    return str(total)


def _holding(context: RecipeContext, note: Callable[[str], None]) -> str:
    """Stay on the device until the file beside the notes says to let go."""
    note(f"holds {context.device} {os.getpid()}")
    while not (context.imports.roots[0] / "let-go").exists():
        context.progress("hold", 0, 1)
        time.sleep(0.05)
    return "held"


def _faulty(context: RecipeContext, note: Callable[[str], None]) -> str:
    """Meet a fault that sticks to the device, the first time."""
    import torch  # only here: the other behaviours start at once

    found = context.load_checkpoint()
    note(f"ran in {os.getpid()}")
    if found is None:
        folder = context.workdir / "seen"
        folder.mkdir()
        (folder / "it").touch()
        context.save_checkpoint(1, folder)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return "a fresh process"


def _poison(context: RecipeContext, note: Callable[[str], None]) -> str:
    """Kill the process."""
    note("began")
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


_BEHAVIOURS = {"quick": _quick, "training": _training, "holding": _holding, "faulty": _faulty, "poison": _poison}
RECIPES["test.work"] = __name__
