"""Steering by an instruction, without training (SDA): settings of profiles, evaluations and requests."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from armature.contracts.base import Contract, View

InstructionText = Annotated[str, Field(min_length=1, max_length=4096)]
Strength = Annotated[
    float,
    Field(ge=0, le=32, description="0: no effect of the instruction; 1: plain instruction; above 1: amplified"),
]


class AdaptiveTemperature(Contract):
    """A lower temperature where the instruction changes more: ``T = max(least, T_0 (1/2)^(JS / sigma))``."""

    sigma: float = Field(
        2 * math.log(2), gt=0, le=100, description="divergence that halves the temperature, in nats; 2 ln 2 is mild"
    )
    least: float = Field(0.0, ge=0, le=2, description="lower bound of the temperature")


class SdaBounds(Contract):
    """A profile's bounds on how a request may change the steering."""

    max_strength: Strength | None = Field(None, description="None: no bound but the field's own")
    own_instruction: bool = Field(True, description="whether a request may replace the instruction")


class SdaSteering(Contract):
    """Settings of ``log P1 + strength (log P2 - log P1)``, P2 being conditioned on the instruction.

    The default strength is the paper's ``1 + kappa`` with kappa = 2.
    """

    instruction: InstructionText
    strength: Strength = 3.0
    adaptive_temperature: AdaptiveTemperature | None = AdaptiveTemperature()


class Sda(SdaSteering):
    """The stage of a profile version: the steering and its bounds for requests."""

    bounds: SdaBounds = SdaBounds()


class SdaRequest(Contract):
    """A request's settings of the steering; null or absent means the profile's."""

    instruction: InstructionText | None = None
    strength: Strength | None = None
    score: float | None = Field(
        None, gt=0, le=100, description="score of an unsteered answer: the higher, the less amplification"
    )


class SdaApplied(View):
    """The steering that was applied. ``strength`` is the value after the score's reduction."""

    instruction: str
    strength: float
    adaptive_temperature: AdaptiveTemperature | None
    safe_set_delta: float | None = Field(description="the safe set that the instruction can not leave")
