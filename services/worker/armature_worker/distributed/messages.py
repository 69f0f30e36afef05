"""The messages between launcher and ranks of a job, one contract each, as JSON over a socket pair."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from armature.contracts.base import Contract
from armature.contracts.datasets import BadRows
from armature.contracts.jobs import EventLevel
from armature.contracts.specs import JobSpec
from armature.settings import ImportSettings
from armature_worker.context.ports import Checkpoint, LocalArtifact, RecipeResult


class Assignment(Contract):
    """The first message to a rank: its place in the group, and all that its recipe sees of the job."""

    rank: int
    size: int
    device: str
    rendezvous: Path
    job_id: str
    spec: JobSpec
    workdir: Path
    artifacts: dict[str, LocalArtifact]
    files: dict[str, Path]
    label_attributes: dict[str, str]
    bad_rows: dict[str, BadRows]
    imports: ImportSettings
    checkpoint: Checkpoint | None


class ProgressReport(Contract):
    """The recipe's progress. Gets a reply, so that the job can be stopped there."""

    type: Literal["progress"] = "progress"
    phase: str
    step: int
    total: int
    metrics: dict[str, float] | None


class LogReport(Contract):
    """A line for the job's events."""

    type: Literal["log"] = "log"
    message: str
    level: EventLevel
    data: dict[str, Any]


class CheckpointReport(Contract):
    """A folder to save as a checkpoint. Gets a reply once it is stored."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Path


class Finished(Contract):
    """The recipe's result."""

    type: Literal["finished"] = "finished"
    result: RecipeResult


class Stopped(Contract):
    """The recipe stopped on request."""

    type: Literal["stopped"] = "stopped"


class Failed(Contract):
    """The recipe's error: the name of its class, and its arguments."""

    type: Literal["failed"] = "failed"
    name: str
    message: str
    param: str | None
    code: str


class Reply(Contract):
    """The reply to a report that gets one."""

    stop: bool = Field(False, description="the attempt must end; another one continues")


Report = ProgressReport | LogReport | CheckpointReport | Finished | Stopped | Failed

_report: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="type")])


def send(channel: Connection, message: Contract) -> None:
    """Send ``message`` as JSON, never as a pickled object (as ``Connection.send`` would)."""
    channel.send_bytes(message.model_dump_json().encode())


def receive_report(channel: Connection) -> Report:
    """Receive the next report of a rank; raises EOFError if its process has ended."""
    return _report.validate_json(channel.recv_bytes())


def receive_assignment(channel: Connection) -> Assignment:
    """Receive the launcher's first message."""
    return Assignment.model_validate_json(channel.recv_bytes())


def receive_reply(channel: Connection) -> Reply:
    """Receive the launcher's reply to a report."""
    return Reply.model_validate_json(channel.recv_bytes())
