"""Steering by an instruction without training (SDA): what versions and evaluations set, what a request may change."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from armature.contracts.base import Contract, View

InstructionText = Annotated[str, Field(min_length=1, max_length=4096)]
Strength = Annotated[
    float,
    Field(
        ge=0, le=32, description="0: as if there were no instruction; 1: the instruction as it is; beyond: amplified"
    ),
]


class AdaptiveTemperature(Contract):
    """Leave less to chance where the instruction changes more: ``T = max(least, T_0 (1/2)^(JS / sigma))``."""

    sigma: float = Field(
        2 * math.log(2), gt=0, le=100, description="divergence that halves the temperature, in nats; 2 ln 2 is mild"
    )
    least: float = Field(0.0, ge=0, le=2, description="what the temperature does not fall below")


class SdaBounds(Contract):
    """How far a request may go from the profile's steering."""

    max_strength: Strength | None = Field(None, description="None: as far as requests may go anywhere")
    own_instruction: bool = Field(True, description="whether a request may bring an instruction of its own")


class SdaSteering(Contract):
    """``log P1 + strength (log P2 - log P1)``, P2 being below the instruction.

    The default strength is the paper's ``1 + kappa`` with kappa = 2.
    """

    instruction: InstructionText
    strength: Strength = 3.0
    adaptive_temperature: AdaptiveTemperature | None = AdaptiveTemperature()


class Sda(SdaSteering):
    """The stage of a profile version: how it steers, and what requests may change of that."""

    bounds: SdaBounds = SdaBounds()


class SdaRequest(Contract):
    """A request's own part of it; null or absent means the profile's."""

    instruction: InstructionText | None = None
    strength: Strength | None = None
    score: float | None = Field(
        None, gt=0, le=100, description="of an answer without steering: the better it is, the less is amplified"
    )


class SdaApplied(View):
    """What was done. ``strength`` is what the score left of it."""

    instruction: str
    strength: float
    adaptive_temperature: AdaptiveTemperature | None
    safe_set_delta: float | None = Field(description="the instruction leads to no token outside of this safe set")
