"""What the worker and the processes of one job tell each other: JSON over a socket pair, one contract a message."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from armature.contracts.base import Contract
from armature.contracts.jobs import EventLevel
from armature.contracts.specs import JobSpec
from armature.settings import ImportSettings
from armature_worker.context.ports import Checkpoint, LocalArtifact, RecipeResult


class Order(Contract):
    """The first message to a process: its place in the group, and all that its recipe sees of the job."""

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
    imports: ImportSettings
    checkpoint: Checkpoint | None


class ProgressReport(Contract):
    """The recipe's progress; answered, so that the job can be stopped there."""

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
    """A checkpoint lies in this folder; answered once it is stored."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Path


class Finished(Contract):
    """The recipe's result."""

    type: Literal["finished"] = "finished"
    result: RecipeResult


class Stopped(Contract):
    """The recipe stopped because it was asked to."""

    type: Literal["stopped"] = "stopped"


class Failed(Contract):
    """The recipe's error: the class by name, and what it was given."""

    type: Literal["failed"] = "failed"
    name: str
    message: str
    param: str | None
    code: str


class Answer(Contract):
    """To a report that waits for one."""

    stop: bool = Field(False, description="the attempt must end, and another one will go on")


Report = ProgressReport | LogReport | CheckpointReport | Finished | Stopped | Failed

_report: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="type")])


def send(channel: Connection, message: Contract) -> None:
    """Send one message. Never a pickled object, as ``Connection.send`` would."""
    channel.send_bytes(message.model_dump_json().encode())


def receive_report(channel: Connection) -> Report:
    """The next report of a process; raises EOFError when it is gone."""
    return _report.validate_json(channel.recv_bytes())


def receive_order(channel: Connection) -> Order:
    """What the worker sent first."""
    return Order.model_validate_json(channel.recv_bytes())


def receive_answer(channel: Connection) -> Answer:
    """What the worker says to a report."""
    return Answer.model_validate_json(channel.recv_bytes())
