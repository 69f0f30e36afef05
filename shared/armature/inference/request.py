"""One sequence to generate: its prompts, what guides it, and how its tokens are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from armature.algorithms.guided_decoding import LogitBias, SamplingParameters
from armature.algorithms.instruction_steering import Steering
from armature.contracts.sda import AdaptiveTemperature
from armature.inference.stream import Role, Stream

MEASURE_SELDOM = 16
"""One in this many tokens has its divergence measured, where only a mean over many requests is wanted."""


@dataclass(frozen=True)
class Guide:
    """How the ARM guides a request: ``log pi_safe + weight * q(. ; preference)`` inside the safe set.

    ``strict``: its favourite inside the safe set, whatever the weight above 0.
    """

    preference: tuple[float, ...]
    weight: float
    safe_set_delta: float | None = None
    strict: bool = False


@dataclass(frozen=True)
class Instruction:
    """How an instruction guides a request: its change times ``strength``, inside the safe set.

    ``sigma`` is the divergence that halves the temperature, None: it stays; ``floor`` is the least it falls to.
    """

    strength: float
    sigma: float | None = None
    floor: float = 0.0
    safe_set_delta: float | None = None

    @classmethod
    def of(cls, strength: float, adaptive: AdaptiveTemperature | None, safe_set_delta: float | None) -> Instruction:
        """Make it from the contract's description."""
        if adaptive is None:
            return cls(strength, safe_set_delta=safe_set_delta)
        return cls(strength, adaptive.sigma, adaptive.least, safe_set_delta)


class StreamCount(NamedTuple):
    """Measure of a request's key-value memory: ``prompts`` to continue, and ``streams`` that do so."""

    prompts: int
    streams: int

    @classmethod
    def of(cls, guide: Guide | None, instruction: Instruction | None) -> StreamCount:
        """Count the streams under these, each of which may be inactive."""
        prompts = 2 if instruction and instruction.strength > 0 else 1
        return cls(prompts, prompts + (1 if guide and guide.weight > 0 else 0))


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
    """(token, nats) each: added to the guided scores; the safe set stays as it is."""
    top_logprobs: int | None = None
    """Alternatives to report with each token's log-probability; None: no log-probabilities."""
    score_prompt: bool = False
    """Whether the prompt's own tokens are scored too (:attr:`armature.inference.batch.Joining.scored`)."""
    namespace: str | None = None
    """Prefix-cache namespace; None: no caching."""
    instruction: Instruction | None = None
    instructed_prompt: tuple[int, ...] = ()
    """The prompt below the instruction, where there is one; such a request's prompt is not scored."""
    arm_prompt: tuple[int, ...] = ()
    """The prompt as an ARM on a model of its own reads it; empty: the ARM is on the base."""
    measured_every: int = 1
    """One in this many tokens has its divergence from the safe model measured; 1: each."""

    @property
    def active_guide(self) -> Guide | None:
        """The guide if it has any weight. With weight 0 a request is the safe base exactly, safe set included."""
        return self.guide if self.guide and self.guide.weight > 0 else None

    @property
    def active_instruction(self) -> Instruction | None:
        """The instruction if it has any strength."""
        return self.instruction if self.instruction and self.instruction.strength > 0 else None

    @property
    def safe_set_delta(self) -> float:
        """The delta of the safe set that both guide and instruction keep to; infinity: there is none."""
        deltas = [stage.safe_set_delta for stage in (self.active_guide, self.active_instruction) if stage]
        return min((delta for delta in deltas if delta is not None), default=math.inf)

    @property
    def combines(self) -> bool:
        """Whether its tokens depend on its streams only through their combination: none is needed on its own."""
        needs_each = self.active_instruction or self.safe_set_delta < math.inf or self.top_logprobs is not None
        return self.active_guide is not None and not self.active_guide.strict and not needs_each

    @property
    def stream_count(self) -> StreamCount:
        """The number of its prompts and streams; an ARM's own model adds one (:class:`KvMemory`)."""
        return StreamCount.of(self.guide, self.instruction)

    @property
    def longest_prompt(self) -> int:
        """Positions of the longest of its prompts."""
        return max(len(self.prompt), len(self.instructed_prompt), len(self.arm_prompt))

    @property
    def length(self) -> int:
        """Positions that a stream of it may grow to."""
        return self.longest_prompt + self.max_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens to prefill, in all its streams."""
        return sum(len(stream.prompt) for stream in self.streams().values())

    def streams(self) -> dict[Role, Stream]:
        """List its streams by role, in the order in which they get rows.

        An ARM on a model of its own has a reference stream there, without the adapter.
        """
        streams: dict[Role, Stream] = {"safe": Stream(self.prompt, namespace=self.namespace)}
        if guide := self.active_guide:
            parent = streams["safe"]
            if self.arm_prompt:
                streams["reference"] = parent = Stream(self.arm_prompt, model="arm", namespace=self.namespace)
            streams["arm"] = parent.guided(guide.preference)
        if self.active_instruction:
            streams["instructed"] = Stream(self.instructed_prompt, namespace=self.namespace)
        return streams


class RequestParameters(NamedTuple):
    """Parameters of requests, in their order: how instructions guide them and how tokens are drawn."""

    sampling: SamplingParameters
    steering: Steering

    def without_guides(self, combined: Sequence[object | None]) -> RequestParameters:
        """Set the weights of requests whose streams are ``combined`` already to 0."""
        if not any(combined):
            return self
        kept = self.sampling.weights.new_tensor([one is None for one in combined])
        return self._replace(sampling=self.sampling._replace(weights=self.sampling.weights * kept))


def stack_parameters(requests: Sequence[GuidedRequest], device: torch.device) -> RequestParameters:
    """Stack the requests' parameters into tensors."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    guides = [request.active_guide for request in requests]
    instructions = [request.active_instruction for request in requests]
    bias = [(row, token, nats) for row, request in enumerate(requests) for token, nats in request.logit_bias]
    rows, tokens, nats = zip(*bias, strict=True) if bias else ((), (), ())
    sampling = SamplingParameters(
        weights=column([guide.weight if guide else 0.0 for guide in guides]),
        deltas=column([request.safe_set_delta for request in requests]),
        strict=column([guide.strict if guide else False for guide in guides], torch.bool),
        temperatures=column([request.temperature for request in requests]),
        top_k=column([request.top_k for request in requests], torch.long),
        top_p=column([request.top_p for request in requests]),
        min_p=column([request.min_p for request in requests]),
        bias=LogitBias(column(rows, torch.long), column(tokens, torch.long), column(nats)) if bias else None,
    )
    steering = Steering(
        strengths=column([one.strength if one else 0.0 for one in instructions]),
        sigmas=column([one.sigma if one and one.sigma else math.inf for one in instructions]),
        floors=column([one.floor if one else 0.0 for one in instructions]),
    )
    return RequestParameters(sampling, steering)
