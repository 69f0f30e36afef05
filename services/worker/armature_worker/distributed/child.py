"""One rank of a job in several processes: join the process group, run the recipe, end.

Rank 0 reports for all ranks; the others report failures only. The group is torch.distributed's default one, joined as
under ``accelerate launch``: gloo between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from structlog.contextvars import bound_contextvars

from armature.contracts.base import Contract
from armature.contracts.datasets import BadRows
from armature.contracts.jobs import EventLevel
from armature.logging import configure_logging
from armature.settings import EndpointSettings
from armature.startup import startup_without_gc
from armature_worker.context.ports import Checkpoint, Interrupted, LocalArtifact, RecipeContext
from armature_worker.context.process_group import ProcessGroup
from armature_worker.distributed.messages import (
    Assignment,
    CheckpointReport,
    Failed,
    Finished,
    LogReport,
    ProgressReport,
    Stopped,
    receive_assignment,
    receive_reply,
    send,
)
from armature_worker.distributed.torch_process_group import TorchProcessGroup
from armature_worker.host.devices import free_memory, probe_memory
from armature_worker.host.failures import explain
from armature_worker.host.parent_watchdog import end_with_parent
from armature_worker.recipes import load_recipe
from armature_worker.settings import WorkerServiceSettings

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Long, since all ranks wait while rank 0 stores a checkpoint. The launcher notices a dead process at once."""


class RankContext:
    """The recipe's context in a rank: rank 0 reports to the launcher, the others report nothing."""

    def __init__(self, job: Assignment, channel: Connection) -> None:
        self.job_id, self.workdir, self.device, self.imports = job.job_id, job.workdir, job.device, job.imports
        self.endpoints: Mapping[str, EndpointSettings] = {}  # keys stay in the worker; no recipe in ranks asks any
        self.artifacts: Mapping[str, LocalArtifact] = job.artifacts
        self.files: Mapping[str, Path] = job.files
        self.label_attributes: Mapping[str, str] = job.label_attributes
        self.bad_rows: Mapping[str, BadRows] = job.bad_rows
        self.process_group: ProcessGroup = TorchProcessGroup()
        self._checkpoint, self._channel = job.checkpoint, channel

    def free_memory(self) -> Mapping[str, int]:
        """See the port. Ignores the operator's limit; no recipe in several processes asks."""
        return free_memory(self.device, probe_memory)

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """See the port."""
        figures = None if metrics is None else dict(metrics)
        if self._report(ProgressReport(phase=phase, step=step, total=total, metrics=figures)):
            raise Interrupted(self.job_id)

    def log(self, message: str, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """See the port."""
        if self.process_group.rank == 0:
            send(self._channel, LogReport(message=message, level=level, data=dict(data or {})))

    def save_checkpoint(self, step: int, path: Path) -> None:
        """See the port."""
        self._report(CheckpointReport(step=step, path=path))

    def load_checkpoint(self) -> Checkpoint | None:
        """See the port."""
        return self._checkpoint

    def _report(self, report: Contract) -> bool:
        """Send ``report`` and return whether to stop; ranks other than 0 go on until the launcher ends them."""
        if self.process_group.rank != 0:
            return False
        send(self._channel, report)
        return receive_reply(self._channel).stop


def run(channel: Connection) -> None:
    """Run the recipe once and send its outcome to the launcher; the exit status is 0 unless it failed."""
    end_with_parent()
    job = receive_assignment(channel)
    configure_logging(WorkerServiceSettings().log, "worker")
    with bound_contextvars(job_id=job.job_id, rank=job.rank):
        try:
            join_group(job)
            context: RecipeContext = RankContext(job, channel)
            with startup_without_gc():
                recipe = load_recipe(job.spec.kind)
            result = recipe(job.spec, context)
        except Interrupted:
            send(channel, Stopped())
        except Exception as raised:
            error = explain(raised)
            failure = Failed(name=type(error).__name__, message=error.message, param=error.param, code=error.error_code)
            send(channel, failure)
            sys.exit(1)
        else:
            if job.rank == 0:
                send(channel, Finished(result=result))


def join_group(job: Assignment) -> None:
    """Join the process group through a file in the job's private folder; other users could reach a port."""
    if job.device != "cpu":
        torch.cuda.set_device(job.device)
    PartialState(
        cpu=job.device == "cpu",
        init_method=job.rendezvous.absolute().as_uri(),
        rank=job.rank,
        world_size=job.size,
        timeout=_COLLECTIVE_TIMEOUT,
    )
