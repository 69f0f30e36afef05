"""Recipes and a store for the tests of attempts at jobs."""

import time
from dataclasses import replace

from armature.contracts.artifacts import ReportMetadata
from armature.errors import StorageUnavailable
from armature.storage.memory import MemoryArtifactStore
from armature_worker.context.ports import Output, RecipeResult
from armature_worker.runtime.runner import execute
from tests.support.jobs import get_job

SPEC = {"kind": "base_model.import", "name": "tiny", "source": {"type": "folder", "path": "/models/tiny"}}
REPORT = ReportMetadata(subject={}, metrics={"asr": 0.5})


class FlakyStore(MemoryArtifactStore):
    """Refuses writes below a prefix while ``down``."""

    down = ""
    error: type[StorageUnavailable] = StorageUnavailable

    def put_file(self, key, path):
        if self.down and self.down in key:
            raise self.error("the object store does not answer")
        super().put_file(key, path)


def run(resources, job_id, recipe):
    """Run one attempt at a job with ``recipe``; return the job's row."""
    execute(job_id, replace(resources, load_recipe=lambda kind: recipe))
    return get_job(resources.sessions, job_id)


def report(context, text="fine"):
    """Write a report into the recipe's work directory; return it as an output."""
    folder = context.workdir / "report"
    folder.mkdir()
    (folder / "report.json").write_text(text)
    return Output("report", folder, REPORT)


def write_report(spec, context):
    return RecipeResult([report(context)])


def must_not_run(spec, context):
    raise AssertionError("ran")


def wait_for_check(context, seconds=10.0):
    """Report steps as a long recipe does, until the context stops it."""
    for step in range(int(seconds / 0.02)):
        context.progress("train", step, 1000)
        time.sleep(0.02)
    raise AssertionError("the recipe was not stopped")


def save(context, step, text):
    """Save a checkpoint that holds ``text``."""
    folder = context.workdir / f"save-{step}"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer/state.json").write_text(text)
    context.save_checkpoint(step, folder)
