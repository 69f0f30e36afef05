"""Time from a submission to a running job on an idle platform with a warm worker, as seen over HTTP."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from transformers.utils.logging import disable_progress_bar

from armature.client import Client
from armature.contracts.specs.base_model import BaseModelImportSpec, FolderSource
from armature_cli.demo.tiny_model import build_model, build_tokenizer
from armature_cli.demo.world import vocabulary
from benchmarks.api.platform import ControlPlane

_POLL_SECONDS = 0.01
_PAUSE_SECONDS = 1.0
"""After a success, the worker process frees memory before it takes another job."""


def write_model(folder: Path) -> None:
    """Write a model so small that its import takes no time worth measuring."""
    disable_progress_bar()
    tokenizer = build_tokenizer(vocabulary())
    build_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def submit(platform: ControlPlane, http: httpx.Client, model: Path, count: int) -> list[float]:
    """Measure the seconds from sending each submission to the first response that shows the job running.

    Jobs are submitted one at a time, each after the one before has succeeded.

    Raises:
        JobFailed: A job did not succeed.
    """
    platform.start("worker")
    with Client(platform.api_url, platform.admin_key) as client:
        seconds = []
        for number in range(count):
            spec = BaseModelImportSpec(name=f"model-{number}", source=FolderSource(path=str(model)))
            started = time.perf_counter()
            job = client.jobs.create(spec)
            while http.get(f"/v1/jobs/{job.id}").raise_for_status().json()["state"] == "queued":
                time.sleep(_POLL_SECONDS)
            seconds.append(time.perf_counter() - started)
            client.jobs.wait(job.id)
            time.sleep(_PAUSE_SECONDS)
    return seconds
