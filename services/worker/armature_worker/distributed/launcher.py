"""Run a recipe in one process per device: start them, relay rank 0's reports, end them all together.

The processes form one process group of the kernel. Whatever ends the job (success, failure, cancellation, a lost lease,
the death of one process) kills the whole group. If the worker dies, each process ends by itself: it watches its parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import ClassVar, cast

import armature.errors
from armature.contracts.specs import JobSpec
from armature.errors import ArmatureError, RankLost
from armature_worker.context.ports import Checkpoint, Interrupted, RecipeContext, RecipeResult
from armature_worker.distributed.messages import (
    Assignment,
    CheckpointReport,
    Failed,
    Finished,
    LogReport,
    ProgressReport,
    Reply,
    Report,
    Stopped,
    receive_report,
    send,
)

_LOOPBACK = "lo"
_IDLE_SECONDS = 0.5
"""How often to check whether the job may go on while no report arrives."""
_SETTLE_SECONDS = 2.0
"""How long to wait for the report of another rank that may have caused an unexpected error."""
_STOP_SECONDS = 30.0
"""How long a group may take to reach its next step once the job must stop."""


class _Ended:
    """Stands for the report of a process that has ended."""


@dataclass(frozen=True)
class _Rank:
    """One process and the launcher's end of its socket pair.

    No other process holds the rank's end, so reading meets the end of file when the rank ends.
    """

    number: int
    process: subprocess.Popen[bytes]
    channel: Connection

    def exit_status(self) -> int:
        """Wait for the process's exit status, negative for a signal as in ``subprocess``.

        Leaves the process unreaped: once rank 0 is reaped, its pid, which names the group, could be used again.
        """
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


class ProcessGroupLauncher:
    """Runs a recipe in one process per device; a context manager that leaves none of them behind.

    Args:
        spec: The job's.
        context: The job's own context; rank 0 reports to it.
        folder: The job's private directory.
        devices: One for each process.
    """

    def __init__(self, spec: JobSpec, context: RecipeContext, folder: Path, devices: Sequence[str]) -> None:
        self._spec, self._context, self._folder, self._devices = spec, context, folder, devices
        self._ranks: list[_Rank] = []
        self._ended: set[int] = set()
        self._position = ("start", 0, 1)
        self._interruption: Interrupted | None = None
        self._interrupted_at = 0.0

    def __enter__(self) -> ProcessGroupLauncher:
        try:
            checkpoint = self._context.load_checkpoint()
            for rank, device in enumerate(self._devices):
                self._ranks.append(self._start(rank, device))
                send(self._ranks[rank].channel, self._assignment(rank, device, checkpoint))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self) -> RecipeResult:
        """Pass the reports of rank 0 to the job's context until the recipe's result arrives.

        Raises:
            JobCancelled, LeaseLost, Interrupted: From the job's context.
            RankLost: A process ended before the recipe did.
            ArmatureError: The recipe's error, from any rank.
        """
        while True:
            reports = self._receive(_IDLE_SECONDS)
            if not reports:
                self._check_job()
            for rank, report in reports:
                if isinstance(report, Finished):
                    return report.result
                if isinstance(report, Failed):
                    raise self._find_cause(_rebuild(report))
                if isinstance(report, _Ended):
                    self._refuse_early_end(rank)
                else:
                    self._ACTIONS[type(report)](self, rank, report)

    def _assignment(self, rank: int, device: str, checkpoint: Checkpoint | None) -> Assignment:
        workdir = self._context.workdir if rank == 0 else self._folder / f"rank-{rank}"
        workdir.mkdir(exist_ok=True)
        return Assignment(
            rank=rank,
            size=len(self._devices),
            device=device,
            rendezvous=self._folder / "rendezvous",
            job_id=self._context.job_id,
            spec=self._spec,
            workdir=workdir,
            artifacts=dict(self._context.artifacts),
            files=dict(self._context.files),
            label_attributes=dict(self._context.label_attributes),
            bad_rows=dict(self._context.bad_rows),
            imports=self._context.imports,
            checkpoint=checkpoint,
        )

    def _start(self, rank: int, device: str) -> _Rank:
        channel, rank_end = Pipe()
        size = len(self._devices)
        environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),
            "GLOO_SOCKET_IFNAME": _LOOPBACK,
            "NCCL_SOCKET_IFNAME": _LOOPBACK,
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "ACCELERATE_TORCH_DEVICE": device,
        }
        with rank_end:
            process = subprocess.Popen(
                [sys.executable, "-m", "armature_worker.distributed", str(rank_end.fileno())],
                env=environment,
                pass_fds=[rank_end.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=self._ranks[0].process.pid if self._ranks else 0,
            )
        return _Rank(rank, process, channel)

    def _receive(self, seconds: float) -> list[tuple[_Rank, Report | _Ended]]:
        """Wait up to ``seconds`` for reports; return at most one per rank, the end of its process included."""
        open_ranks = {rank.channel: rank for rank in self._ranks if rank.number not in self._ended}
        reports: list[tuple[_Rank, Report | _Ended]] = []
        for channel in wait(list(open_ranks), seconds):
            rank = open_ranks[cast("Connection", channel)]
            try:
                reports.append((rank, receive_report(rank.channel)))
            except (EOFError, OSError):
                self._ended.add(rank.number)
                reports.append((rank, _Ended()))
        return reports

    def _check_job(self) -> None:
        """Check whether the job may go on.

        An interruption waits for the ranks' next step, where a checkpoint is saved; it is raised here only if that
        takes too long.
        """
        try:
            self._context.progress(*self._position)
        except Interrupted as interruption:
            if self._interruption is None:
                self._interruption, self._interrupted_at = interruption, time.monotonic()
            elif time.monotonic() - self._interrupted_at > _STOP_SECONDS:
                raise

    def _pass_on_progress(self, rank: _Rank, report: ProgressReport) -> None:
        self._position = (report.phase, report.step, report.total)
        try:
            self._context.progress(*self._position, report.metrics)
        except Interrupted as interruption:  # the recipe saves a checkpoint first
            self._interruption = interruption
            send(rank.channel, Reply(stop=True))
        else:
            send(rank.channel, Reply())

    def _pass_on_line(self, rank: _Rank, report: LogReport) -> None:
        self._context.log(report.message, report.level, report.data)

    def _pass_on_checkpoint(self, rank: _Rank, report: CheckpointReport) -> None:
        self._context.save_checkpoint(report.step, report.path)
        send(rank.channel, Reply())

    def _stop(self, rank: _Rank, report: Stopped) -> None:
        assert self._interruption is not None
        raise self._interruption

    _ACTIONS: ClassVar[dict[type, Callable[..., None]]] = {
        ProgressReport: _pass_on_progress,
        LogReport: _pass_on_line,
        CheckpointReport: _pass_on_checkpoint,
        Stopped: _stop,
    }

    def _refuse_early_end(self, rank: _Rank) -> None:
        """Raise RankLost unless a rank other than 0 has finished its recipe, with exit status 0."""
        status = rank.exit_status()
        if status or rank.number == 0:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise RankLost(f"process {rank.number} of {len(self._ranks)} (counted from 0) {how}")

    def _find_cause(self, error: ArmatureError) -> ArmatureError:
        """Return the error to report: an unexpected one is often the consequence of another rank's failure.

        So wait briefly for a better explanation: a more specific error, or a process killed by a signal.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        while type(error) is ArmatureError and (remaining := deadline - time.monotonic()) > 0:
            for rank, report in self._receive(remaining):
                if isinstance(report, Failed):
                    self._ended.add(rank.number)
                    error = _rebuild(report)
                elif isinstance(report, _Ended) and rank.exit_status() < 0:
                    self._refuse_early_end(rank)
        return error

    def _end(self) -> None:
        """Kill all processes at once and reap them."""
        if self._ranks:
            os.killpg(self._ranks[0].process.pid, signal.SIGKILL)
        for rank in self._ranks:
            rank.process.wait()
            rank.channel.close()


def _rebuild(report: Failed) -> ArmatureError:
    error: type[ArmatureError] = getattr(armature.errors, report.name, ArmatureError)
    return error(report.message, param=report.param, code=report.code)
