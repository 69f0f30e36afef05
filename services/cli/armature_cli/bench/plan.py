"""What ``armature bench decode`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["tiny", "125m", "500m", "7b"]
DtypeChoice = Literal["auto", "float32", "bfloat16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
Targets = Literal["attention", "attention_and_mlp"]


@dataclass(frozen=True)
class Plan:
    """The model's shape, the adapter's targets, and how much is measured."""

    size: Size
    dtype: DtypeChoice
    device: DeviceChoice
    targets: Targets
    batches: tuple[int, ...]
    rounds: int
    steps: int
