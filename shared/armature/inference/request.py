"""One sequence to generate: its prompts, what steers it, and how its tokens are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from armature.algorithms.guided_decoding import LogitBias, SamplingParameters
from armature.algorithms.instruction_steering import Steering
from armature.contracts.sda import AdaptiveTemperature

SELDOM = 16
"""Of how many tokens one is measured where a mean over many requests is all that is wanted."""


@dataclass(frozen=True)
class Guide:
    """How the ARM steers a request: ``log pi_safe + weight * q(. ; preference)`` inside the safe set.

    ``strict``: its favourite inside the safe set, whatever the weight above 0.
    """

    preference: tuple[float, ...]
    weight: float
    safe_set_delta: float | None = None
    strict: bool = False


@dataclass(frozen=True)
class Instruction:
    """How an instruction steers a request: what it changes, ``strength`` times as much, inside the safe set.

    ``sigma`` is the divergence that halves the temperature, None: it stays; ``floor`` is the least it falls to.
    """

    strength: float
    sigma: float | None = None
    floor: float = 0.0
    safe_set_delta: float | None = None

    @classmethod
    def of(cls, strength: float, adaptive: AdaptiveTemperature | None, safe_set_delta: float | None) -> Instruction:
        """As contracts describe it."""
        if adaptive is None:
            return cls(strength, safe_set_delta=safe_set_delta)
        return cls(strength, adaptive.sigma, adaptive.least, safe_set_delta)


@dataclass(frozen=True)
class GuidedRequest:
    """One sequence to generate. Without a guide and an instruction it is the safe base's own."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int = 0
    guide: Guide | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, nats) each: added to what is wished for; the safe set stays what it is."""
    top_logprobs: int | None = None
    """How many alternatives to report with each token's log-probability; None: no log-probabilities."""
    score_prompt: bool = False
    """Whether the prompt's own tokens are asked about too (:attr:`Joining.scored`)."""
    cache_scope: str | None = None
    """Whose requests may share computed beginnings of prompts with it; None: nobody's."""
    instruction: Instruction | None = None
    instructed_prompt: tuple[int, ...] = ()
    """The prompt below the instruction, where there is one; such a request's prompt is not scored."""
    arm_prompt: tuple[int, ...] = ()
    """The prompt as an ARM on a model of its own reads it; empty: as the base does."""
    measured_every: int = 1
    """Of so many tokens one tells how far it is from the safe model; 1: each does."""

    @property
    def steering(self) -> Guide | None:
        """The guide if it has any weight. With weight 0 a request is the safe base exactly, safe set included."""
        return self.guide if self.guide and self.guide.weight > 0 else None

    @property
    def instructing(self) -> Instruction | None:
        """The instruction if it has any strength. With strength 0 it is as if there were none."""
        return self.instruction if self.instruction and self.instruction.strength > 0 else None

    @property
    def safe_set_delta(self) -> float:
        """Of the safe set that everything that steers keeps to; infinity: there is none."""
        deltas = [stage.safe_set_delta for stage in (self.steering, self.instructing) if stage]
        return min((delta for delta in deltas if delta is not None), default=math.inf)

    @property
    def mixes(self) -> bool:
        """Whether its tokens depend on its streams only through their mixture: nothing asks for one on its own."""
        apart = self.instructing or self.safe_set_delta < math.inf or self.top_logprobs is not None
        return self.steering is not None and not self.steering.strict and not apart

    @property
    def contexts(self) -> int:
        """How many prompts it goes on from."""
        return 2 if self.instructing else 1

    @property
    def streams(self) -> int:
        """How many rows of a batch it owns."""
        return self.contexts + (1 if self.steering else 0)

    @property
    def longest_prompt(self) -> int:
        """Positions of the longest of its prompts."""
        return max(len(self.prompt), len(self.instructed_prompt), len(self.arm_prompt))

    @property
    def length(self) -> int:
        """Positions that a stream of it may come to have."""
        return self.longest_prompt + self.max_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens to be computed before its first one, in all its streams."""
        instructed = len(self.instructed_prompt) if self.instructing else 0
        return len(self.prompt) * (2 if self.steering else 1) + instructed


class RequestParameters(NamedTuple):
    """What several requests ask for, in their order: how instructions steer them, and how their tokens are drawn."""

    sampling: SamplingParameters
    steering: Steering


def stack_parameters(requests: Sequence[GuidedRequest], device: torch.device) -> RequestParameters:
    """The requests' parameters as tensors."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    guides = [request.steering for request in requests]
    given = [request.instructing for request in requests]
    bias = [(row, token, nats) for row, request in enumerate(requests) for token, nats in request.logit_bias]
    rows, tokens, nats = zip(*bias, strict=True) if bias else ((), (), ())
    sampling = SamplingParameters(
        weights=column([guide.weight if guide else 0.0 for guide in guides]),
        deltas=column([request.safe_set_delta for request in requests]),
        strict=column([guide.strict if guide else False for guide in guides], torch.bool),
        temperatures=column([r.temperature for r in requests]),
        top_k=column([r.top_k for r in requests], torch.long),
        top_p=column([r.top_p for r in requests]),
        min_p=column([r.min_p for r in requests]),
        bias=LogitBias(column(rows, torch.long), column(tokens, torch.long), column(nats)) if bias else None,
    )
    steering = Steering(
        strengths=column([one.strength if one else 0.0 for one in given]),
        sigmas=column([one.sigma if one and one.sigma else math.inf for one in given]),
        floors=column([one.floor if one else 0.0 for one in given]),
    )
    return RequestParameters(sampling, steering)
