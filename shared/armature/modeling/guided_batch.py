"""Guided generation for many requests at once: two streams each, then one sampler over all slots.

Each request brings its own preference, guidance weight, safe set, sampling parameters and seed, and draws from a
generator of its own (trap T23), so its tokens do not depend on who shares the batch. The decoder's engine and the
worker's evaluation both generate through :class:`GuidedBatch`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from armature.algorithms.guided_decoding import (
    GuidedDistribution,
    LogitBias,
    SamplingParameters,
    choose_tokens,
    guided_distribution,
)
from armature.modeling.guided_model import GuidedModel, start_rows
from armature.modeling.prefix_cache import PrefixCache
from armature.modeling.rows import Prefill, RowRequest, TwinLogits

FinishReason = Literal["stop", "length"]

SCORED_AT_ONCE = 128
"""Tokens of a prompt that are scored together: the logits of each are as wide as the vocabulary."""

_SWEEP = 8
"""Slots are freed when one in eight has finished: each freeing copies the cache, each idle slot wastes its rows."""


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
class GuidedRequest:
    """One sequence to generate. Without a guide it is the safe base's own."""

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

    @property
    def streams(self) -> int:
        """How many rows of a batch it owns."""
        return 2 if self.steering else 1

    @property
    def length(self) -> int:
        """Positions that it may come to have."""
        return len(self.prompt) + self.max_tokens

    @property
    def steering(self) -> Guide | None:
        """The guide if it has any weight. With weight 0 a request is the safe base exactly, safe set included."""
        return self.guide if self.guide and self.guide.weight > 0 else None


class Sampled(NamedTuple):
    """A token. With finish reason ``stop`` it is the end-of-sequence token and belongs to no text."""

    token: int
    finish_reason: FinishReason | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    divergence: float = 0.0
    """KL(pi~ || pi_safe) of the distribution it was drawn from, before temperature and filters, in nats."""
    safe_logprob: float = 0.0
    """log pi_safe of the token."""
    arm_logprob: float = 0.0
    """log pi_arm of the token; log pi_safe without guidance."""
    rejected: bool = False
    """Guidance alone would have favoured a token outside of the safe set."""


def generate_guided(model: GuidedModel, requests: Sequence[GuidedRequest], max_slots: int = 64) -> list[list[int]]:
    """Generate all requests; returns the new token ids of each, without the end-of-sequence token."""
    sequences = sample_sequences(model, requests, max_slots)
    return [[token.token for token in sequence if token.finish_reason != "stop"] for sequence in sequences]


def sample_sequences(model: GuidedModel, requests: Sequence[GuidedRequest], max_slots: int = 64) -> list[list[Sampled]]:
    """Generate all requests, ``max_slots`` side by side: one that ends makes room for the next.

    Returns:
        Every token of each request with what is known of it; the last has a finish reason.
    """
    outputs: list[list[Sampled]] = [[] for _ in requests]
    batch, waiting, running = GuidedBatch(model), list(range(len(requests)))[::-1], list[int]()
    while waiting or running:
        sampled = batch.step() if running else []
        joining = [waiting.pop() for _ in range(min(max_slots - len(running), len(waiting)))]
        sampled += batch.join(batch.begin([requests[index] for index in joining])) if joining else []
        running += joining
        for index, token in zip(running, sampled, strict=True):
            if not _is_finished(outputs[index]):
                outputs[index].append(token)
        going = [slot for slot, index in enumerate(running) if not _is_finished(outputs[index])]
        if (len(running) - len(going)) * _SWEEP >= len(running):
            batch.keep(going)
            running = [running[slot] for slot in going]
    return outputs


def _is_finished(sequence: list[Sampled]) -> bool:
    return bool(sequence) and sequence[-1].finish_reason is not None


@dataclass
class _Slot:
    """A running request, its generator, and how many tokens it has."""

    request: GuidedRequest
    generator: torch.Generator = field(init=False)
    produced: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.request.seed)

    def draw(self) -> torch.Tensor:
        return torch.rand((), generator=self.generator, dtype=torch.float64)


@dataclass(frozen=True)
class Joining:
    """Requests on their way into a batch: their prompts can be computed piece by piece, between its steps.

    ``scored`` is what a request's distributions think of its prompt, each token but the first, as far as it is
    computed. Who asks for that begins alone.
    """

    slots: list[_Slot]
    prefill: Prefill
    scored: list[Sampled] = field(default_factory=list)


class GuidedBatch:
    """Running requests in slots 0 to ``len(batch) - 1``. They join and leave between steps.

    A :meth:`join` that raises leaves the batch as it was; after a :meth:`step` that raises, only ``keep([])`` may
    follow.
    """

    def __init__(self, model: GuidedModel, prefixes: PrefixCache | None = None) -> None:
        """``prefixes`` are the model's own; the back ends that can, use them."""
        self._eos_ids = model.eos_ids
        self._form = model.loss_form or "reference"
        self._rows = start_rows(model, prefixes)
        self._device = model.model.device
        self._slots: list[_Slot] = []
        self._parameters = _stack([], self._device)
        self._newest = torch.zeros(0, dtype=torch.long, device=self._device)

    def __len__(self) -> int:
        """How many slots are taken."""
        return len(self._slots)

    def begin(self, requests: Sequence[GuidedRequest]) -> Joining:
        """New requests, of whose prompts nothing is computed yet; the batch does not know them. To give up, drop it."""
        streams = [
            RowRequest(r.prompt, r.steering.preference if r.steering else None, r.cache_scope, r.score_prompt)
            for r in requests
        ]
        return Joining([_Slot(request) for request in requests], self._rows.begin(streams))

    def advance(self, joining: Joining, tokens: int) -> bool:
        """Compute about so many more tokens of the prompts. Returns whether all is computed."""
        if joining.slots[0].request.score_prompt:
            joining.prefill.advance(min(tokens, SCORED_AT_ONCE))
            joining.scored.extend(self._score(joining.slots[0].request, len(joining.scored), joining.prefill.newest))
        else:
            joining.prefill.advance(tokens)
        return not joining.prefill.remaining

    def join(self, joining: Joining) -> list[Sampled]:
        """Compute what is left of new requests, take them into the next slots and return the first token of each."""
        while joining.prefill.remaining:
            self.advance(joining, sys.maxsize)
        tokens, sampled = self._sample(
            joining.prefill.logits, joining.slots, _stack([slot.request for slot in joining.slots], self._device)
        )
        self._rows.join(joining.prefill)
        self._slots += joining.slots
        self._parameters = _stack([slot.request for slot in self._slots], self._device)
        self._newest = torch.cat([self._newest, tokens])
        return sampled

    def step(self) -> list[Sampled]:
        """The next token of every slot."""
        logits = self._rows.step(self._newest)
        self._newest, sampled = self._sample(logits, self._slots, self._parameters)
        return sampled

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""
        self._rows.keep(slots)
        self._slots = [self._slots[slot] for slot in slots]
        self._parameters = _stack([slot.request for slot in self._slots], self._device)
        self._newest = self._newest[torch.tensor(slots, dtype=torch.long, device=self._device)]

    @torch.inference_mode()
    def _sample(
        self, logits: TwinLogits, slots: list[_Slot], parameters: SamplingParameters
    ) -> tuple[torch.Tensor, list[Sampled]]:
        guided = guided_distribution(logits.safe, logits.arm, parameters, self._form)
        uniforms = torch.stack([slot.draw() for slot in slots]).to(self._device)
        tokens = choose_tokens(guided, parameters, uniforms)
        sampled = describe_tokens(guided, tokens, [slot.request.top_logprobs for slot in slots])
        return tokens, [
            one._replace(finish_reason=self._advance(slot, one.token)) for slot, one in zip(slots, sampled, strict=True)
        ]

    @torch.inference_mode()
    def _score(self, request: GuidedRequest, done: int, logits: TwinLogits) -> list[Sampled]:
        """What the distributions after positions ``done`` and on think of the prompt's next tokens."""
        told = request.prompt[done + 1 :][: len(logits.safe)]
        parameters = _stack([request] * len(told), self._device)
        guided = guided_distribution(logits.safe[: len(told)], logits.arm[: len(told)], parameters, self._form)
        tokens = torch.tensor(told, dtype=torch.long, device=self._device)
        return describe_tokens(guided, tokens, [request.top_logprobs] * len(told))

    def _advance(self, slot: _Slot, token: int) -> FinishReason | None:
        slot.produced += 1
        if token in self._eos_ids:
            return "stop"
        return "length" if slot.produced >= slot.request.max_tokens else None


def describe_tokens(
    guided: GuidedDistribution, tokens: torch.Tensor, top_logprobs: Sequence[int | None]
) -> list[Sampled]:
    """What there is to know of one token (n,) of each row, without a finish reason; None: no log-probabilities."""
    log_probs, safe, arm = guided.of(tokens)
    columns = (tokens, log_probs, guided.divergence(), safe, arm, guided.rejected)
    facts = torch.stack([column.double() for column in columns], dim=1).tolist()  # one copy to the host
    described = []
    for row, count, fact in zip(guided.log_probs, top_logprobs, facts, strict=True):
        token, log_prob, divergence, safe_logprob, arm_logprob, rejected = fact
        sampled = Sampled(int(token), None, None, (), divergence, safe_logprob, arm_logprob, bool(rejected))
        if count is not None:
            best = row.topk(count)
            top = [(id, p) for id, p in zip(best.indices.tolist(), best.values.tolist(), strict=True) if p > -math.inf]
            sampled = sampled._replace(logprob=log_prob, top=tuple(top))
        described.append(sampled)
    return described


def _stack(requests: Sequence[GuidedRequest], device: torch.device) -> SamplingParameters:
    """The requests' parameters as tensors, in their order."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    guides = [request.steering for request in requests]
    deltas = [guide.safe_set_delta if guide else None for guide in guides]
    bias = [(row, token, nats) for row, request in enumerate(requests) for token, nats in request.logit_bias]
    rows, tokens, nats = zip(*bias, strict=True) if bias else ((), (), ())
    return SamplingParameters(
        weights=column([guide.weight if guide else 0.0 for guide in guides]),
        deltas=column([math.inf if delta is None else delta for delta in deltas]),
        strict=column([guide.strict if guide else False for guide in guides], torch.bool),
        temperatures=column([r.temperature for r in requests]),
        top_k=column([r.top_k for r in requests], torch.long),
        top_p=column([r.top_p for r in requests]),
        min_p=column([r.min_p for r in requests]),
        bias=LogitBias(column(rows, torch.long), column(tokens, torch.long), column(nats)) if bias else None,
    )
