"""One of the processes that run a job together.

It joins the group, runs the recipe like any worker, and ends. Rank 0 speaks for all; the others tell of failures alone.
The group itself is torch.distributed's, joined the way ``accelerate`` launches: gloo between CPUs, NCCL between GPUs.
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
from armature.contracts.jobs import EventLevel
from armature.logging import configure_logging
from armature.startup import startup_without_gc
from armature_worker.context.ports import Checkpoint, Interrupted, LocalArtifact, RecipeContext
from armature_worker.context.process_group import ProcessGroup
from armature_worker.distributed.messages import (
    CheckpointReport,
    Failed,
    Finished,
    LogReport,
    Order,
    ProgressReport,
    Stopped,
    receive_answer,
    receive_order,
    send,
)
from armature_worker.distributed.torch_process_group import TorchProcessGroup
from armature_worker.host.devices import free_memory, probe_memory
from armature_worker.host.failures import explain
from armature_worker.host.parent_watchdog import end_with_parent
from armature_worker.recipes import load_recipe
from armature_worker.settings import WorkerServiceSettings

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""A process may wait for rank 0 while a checkpoint is stored; one that died is noticed at once by the worker."""


class RankContext:
    """The recipe's context: the worker's for rank 0, by way of the channel, and a silent one for the others."""

    def __init__(self, order: Order, channel: Connection) -> None:
        self.job_id, self.workdir, self.device, self.imports = order.job_id, order.workdir, order.device, order.imports
        self.artifacts: Mapping[str, LocalArtifact] = order.artifacts
        self.files: Mapping[str, Path] = order.files
        self.label_attributes: Mapping[str, str] = order.label_attributes
        self.process_group: ProcessGroup = TorchProcessGroup()
        self._checkpoint, self._channel = order.checkpoint, channel

    def free_memory(self) -> Mapping[str, int]:
        """See the port. What the device itself says: no job of several processes asks."""
        return free_memory(self.device, probe_memory)

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """See the port."""
        given = None if metrics is None else dict(metrics)
        if self._ask(ProgressReport(phase=phase, step=step, total=total, metrics=given)):
            raise Interrupted(self.job_id)

    def log(self, message: str, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """See the port."""
        if self.process_group.rank == 0:
            send(self._channel, LogReport(message=message, level=level, data=dict(data or {})))

    def save_checkpoint(self, step: int, path: Path) -> None:
        """See the port."""
        self._ask(CheckpointReport(step=step, path=path))

    def load_checkpoint(self) -> Checkpoint | None:
        """See the port."""
        return self._checkpoint

    def _ask(self, report: Contract) -> bool:
        """Report, and hear whether to stop; all but rank 0 go on, and end with the group."""
        if self.process_group.rank != 0:
            return False
        send(self._channel, report)
        return receive_answer(self._channel).stop


def run(channel: Connection) -> None:
    """Run the recipe once; whatever comes of it is sent, and the exit status says whether it was a success."""
    end_with_parent()
    order = receive_order(channel)
    configure_logging(WorkerServiceSettings().log, "worker")
    with bound_contextvars(job_id=order.job_id, rank=order.rank):
        try:
            join_group(order)
            context: RecipeContext = RankContext(order, channel)
            with startup_without_gc():
                recipe = load_recipe(order.spec.kind)
            result = recipe(order.spec, context)
        except Interrupted:
            send(channel, Stopped())
        except Exception as error:
            told = explain(error)
            send(
                channel,
                Failed(name=type(told).__name__, message=told.message, param=told.param, code=told.error_code),
            )
            sys.exit(1)
        else:
            if order.rank == 0:
                send(channel, Finished(result=result))


def join_group(order: Order) -> None:
    """Connect with the other processes, through a file of the job's private folder: no port that others could reach."""
    if order.device != "cpu":
        torch.cuda.set_device(order.device)
    PartialState(
        cpu=order.device == "cpu",
        init_method=order.rendezvous.absolute().as_uri(),
        rank=order.rank,
        world_size=order.size,
        timeout=_COLLECTIVE_TIMEOUT,
    )
