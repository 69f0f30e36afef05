"""What the benchmarks can be asked for."""

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
    """Of decoding: the model's shape, the adapter's targets, and how much is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    targets: Targets
    batches: tuple[int, ...]
    rounds: int
    steps: int


@dataclass(frozen=True)
class TrainPlan:
    """Of training: the model's shape, the adapter, the batch, and how often it is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    layers: Adapted
    pairs: int
    prompt: int
    """Tokens of a prompt, in the middle."""
    answer: int
    """Tokens of an answer to it, in the middle."""
    rounds: int


@dataclass(frozen=True)
class ServePlan:
    """Of serving: the model's shape, the slots of a batch, and how much is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    slots: int
    requests: int
    """Of a turn at half load; a quarter of them where less is asked, and before and after the swaps."""
    swaps: int
    rounds: int


@dataclass(frozen=True)
class ApiPlan:
    """Of the control plane: how full the tables are, and how often each thing is measured."""

    jobs: int
    rounds: int
    """Of requests, and of claims."""
    submissions: int
    database_url: str | None
    """Of a PostgreSQL on which databases may be made; None starts one."""
