"""The options of each benchmark as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["tiny", "35m", "125m", "500m", "7b"]
DtypeChoice = Literal["auto", "float32", "bfloat16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
Targets = Literal["attention", "attention_and_mlp"]
Adapted = Literal["all", "upper_half"]


@dataclass(frozen=True)
class Plan:
    """Options of ``decode``: the model's shape, the adapter's targets, and how much is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    targets: Targets
    batches: tuple[int, ...]
    rounds: int
    steps: int


@dataclass(frozen=True)
class TrainPlan:
    """Options of ``train``: the model's shape, the adapter, the batch, and how often it is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    layers: Adapted
    pairs: int
    prompt: int
    """Mean tokens of a prompt."""
    answer: int
    """Mean tokens of an answer."""
    rounds: int


@dataclass(frozen=True)
class ServePlan:
    """Options of ``serve``: the model's shape, the slots of a batch, and how much is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    slots: int
    requests: int
    """Requests of a run at half load; the runs at half of the static load and around the swaps send a quarter."""
    swaps: int
    rounds: int


@dataclass(frozen=True)
class ApiPlan:
    """Options of ``api``: how full the tables are, and how often each figure is measured."""

    jobs: int
    rounds: int
    """Measured runs of each request and of a claim."""
    submissions: int
    database_url: str | None
    """URL of a PostgreSQL server that allows creating databases; None starts a server."""
