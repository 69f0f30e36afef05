"""Guided generation for many requests at once: two streams each, then one sampler over all slots.

Each request brings its own preference, guidance weight, safe set, sampling parameters and seed, and draws from a
generator of its own (trap T23), so its tokens do not depend on who shares the batch. The decoder's engine and the
worker's evaluation both generate through :class:`GuidedBatch`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from armature.algorithms.guided_decoding import (
    GuidedDistribution,
    Mixture,
    SamplingParameters,
    choose_tokens,
    guided_distribution,
    safe_divergence,
)
from armature.algorithms.instruction_steering import adapt_temperatures, divergence, steer
from armature.errors import NonFiniteLogits
from armature.inference.instructed import (
    InstructedLogits,
    InstructedPrefill,
    InstructedRequest,
    InstructedRows,
)
from armature.inference.model import GuidedModel, start_rows
from armature.inference.prefix_cache import PrefixCache
from armature.inference.request import GuidedRequest, RequestParameters, stack_parameters
from armature.inference.runner import Mixed, RowRequest, TwinLogits

FinishReason = Literal["stop", "length"]

SCORED_AT_ONCE = 128
"""Tokens of a prompt that are scored together: the logits of each are as wide as the vocabulary."""

_SWEEP = 8
"""Slots are freed when one in eight has finished: each freeing copies the cache, each idle slot wastes its rows."""

_CACHED_NUMBERS = 1 << 19
"""Of a table over the vocabulary. A step makes a dozen of them, and what a processor's cache holds is read fastest."""

_Block = tuple[slice, RequestParameters]
"""Slots whose tokens are drawn together."""


class Sampled(NamedTuple):
    """A token. With finish reason ``stop`` it is the end-of-sequence token and belongs to no text."""

    token: int
    finish_reason: FinishReason | None
    divergence: float | None = None
    """KL(pi~ || pi_safe) of the distribution it was drawn from, before temperature and filters, in nats; None: not
    measured."""
    rejected: bool = False
    """Guidance alone would have favoured a token outside of the safe set."""
    undefined: bool = False
    """The safe model's logits are no numbers: the token means nothing, and its request can not go on."""
    logprob: float | None = None
    """log pi~ of the token; None: the request does not want log-probabilities, and there is nothing below."""
    top: tuple[tuple[int, float], ...] = ()
    safe_logprob: float = 0.0
    """log pi_safe of the token."""
    arm_logprob: float = 0.0
    """log pi_arm of the token; log pi_safe without guidance."""


def generate_guided(model: GuidedModel, requests: Sequence[GuidedRequest], max_slots: int = 64) -> list[list[int]]:
    """Generate all requests; returns the new token ids of each, without the end-of-sequence token."""
    sequences = sample_sequences(model, requests, max_slots)
    return [[token.token for token in sequence if token.finish_reason != "stop"] for sequence in sequences]


def sample_sequences(model: GuidedModel, requests: Sequence[GuidedRequest], max_slots: int = 64) -> list[list[Sampled]]:
    """Generate all requests, ``max_slots`` side by side: one that ends makes room for the next.

    Returns:
        Every token of each request with what is known of it; the last has a finish reason.

    Raises:
        NonFiniteLogits: The base model has no next token for one.
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
                check_defined(token)
                outputs[index].append(token)
        going = [slot for slot, index in enumerate(running) if not _is_finished(outputs[index])]
        if (len(running) - len(going)) * _SWEEP >= len(running):
            batch.keep(going)
            running = [running[slot] for slot in going]
    return outputs


def check_defined(*sampled: Sampled) -> None:
    """Refuse what the model gives no numbers for.

    Raises:
        NonFiniteLogits: One of them is undefined.
    """
    if any(one.undefined for one in sampled):
        raise NonFiniteLogits("the base model overflows on this prompt: there is no next token")


def _is_finished(sequence: list[Sampled]) -> bool:
    return bool(sequence) and sequence[-1].finish_reason is not None


@dataclass
class _Slot:
    """A running request, its generator, how many tokens it has, and how many requests the batch began before it."""

    request: GuidedRequest
    mixture: Mixture | None
    number: int
    generator: torch.Generator = field(init=False)
    produced: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.request.seed)

    @property
    def measured(self) -> bool:
        """Whether the next token's divergence is. Neighbours take turns, so that no step measures all."""
        return (self.number + self.produced) % self.request.measured_every == 0

    @property
    def mixed(self) -> Mixed | None:
        """How the streams are wanted for the next token."""
        return None if self.mixture is None else Mixed(self.mixture, self.measured)

    def draw(self) -> torch.Tensor:
        return torch.rand((), generator=self.generator, dtype=torch.float64)


@dataclass(frozen=True)
class Joining:
    """Requests on their way into a batch: their prompts can be computed piece by piece, between its steps.

    ``scored`` is what a request's distributions think of its prompt, each token but the first, as far as it is
    computed. Who asks for that begins alone.
    """

    slots: list[_Slot]
    prefill: InstructedPrefill
    scored: list[Sampled] = field(default_factory=list)

    @property
    def is_computed(self) -> bool:
        """Whether nothing is left of the prompts."""
        return not self.prefill.remaining


class GuidedBatch:
    """Running requests in slots 0 to ``len(batch) - 1``. They join and leave between steps.

    A :meth:`join` that raises leaves the batch as it was; after a :meth:`step` or a :meth:`keep` that raises, only
    ``keep([])`` may follow.
    """

    def __init__(self, model: GuidedModel, prefixes: PrefixCache | None = None) -> None:
        """``prefixes`` are the model's own; the back ends that can, use them."""
        self._eos_ids, self._vocab_size = model.eos_ids, model.vocab_size
        self._form = model.loss_form or "reference"
        self._device = model.model.device
        self._rows = InstructedRows(start_rows(model, prefixes), self._device)
        self._begun = itertools.count()
        self._slots: list[_Slot] = []
        self._blocks: list[_Block] = []
        self._newest = torch.zeros(0, dtype=torch.long, device=self._device)

    def __len__(self) -> int:
        """How many slots are taken."""
        return len(self._slots)

    def begin(self, requests: Sequence[GuidedRequest]) -> Joining:
        """New requests, of whose prompts nothing is computed yet; the batch does not know them. To give up, drop it."""
        slots = [_Slot(one, self._mixture_of(one), next(self._begun)) for one in requests]
        return Joining(slots, self._rows.begin([_streams_of(one) for one in requests]))

    def advance(self, joining: Joining, tokens: int) -> int:
        """Compute about so many more tokens of the prompts, in all their streams; returns how many."""
        request = joining.slots[0].request
        if not request.score_prompt:
            return joining.prefill.advance(tokens)
        computed = joining.prefill.advance(min(tokens, SCORED_AT_ONCE))
        joining.scored.extend(self._score(request, len(joining.scored), joining.prefill.newest))
        return computed

    def join(self, joining: Joining) -> list[Sampled]:
        """Compute what is left of new requests, take them into the next slots and return the first token of each."""
        while not joining.is_computed:
            self.advance(joining, sys.maxsize)
        unmixed = [None] * len(joining.slots)
        tokens, sampled = self._sample(joining.prefill.logits, joining.slots, self._cut(joining.slots), unmixed)
        self._rows.join(joining.prefill)
        self._slots += joining.slots
        self._blocks = self._cut(self._slots)
        self._newest = torch.cat([self._newest, tokens])
        return sampled

    def step(self) -> list[Sampled]:
        """The next token of every slot."""
        mixed = [slot.mixed for slot in self._slots]
        logits = self._rows.step(self._newest, mixed)
        self._newest, sampled = self._sample(logits, self._slots, self._blocks, mixed)
        return sampled

    def keep(self, slots: Sequence[int]) -> None:
        """Free all slots but these, which move up in their order."""
        self._rows.keep(slots)
        self._slots = [self._slots[slot] for slot in slots]
        self._blocks = self._cut(self._slots)
        self._newest = self._newest[torch.tensor(slots, dtype=torch.long, device=self._device)]

    @torch.inference_mode()
    def _sample(
        self,
        logits: InstructedLogits,
        slots: list[_Slot],
        blocks: list[_Block],
        mixed: Sequence[Mixed | None],
    ) -> tuple[torch.Tensor, list[Sampled]]:
        uniforms = torch.stack([slot.draw() for slot in slots]).to(self._device)
        tokens, sampled, scores = [], list[Sampled](), list[torch.Tensor]()
        for rows, parameters in blocks:
            drawn = [slot.request for slot in slots[rows]]
            mine = logits.select(rows, instructed=any(request.instructing for request in drawn))
            guided, sampling = distribute(mine, _without_guidance(parameters, mixed[rows]), self._form)
            tokens.append(choose_tokens(guided, sampling, uniforms[rows]))
            measured = [slot.measured and one is None for slot, one in zip(slots[rows], mixed[rows], strict=True)]
            sampled += describe_tokens(guided, tokens[-1], [request.top_logprobs for request in drawn], measured)
            scores += [guided.scores[row] for row, one in enumerate(mixed[rows]) if one and one.measured]
        if logits.twin.measured is not None:
            _tell_divergences(sampled, mixed, safe_divergence(torch.stack(scores), logits.twin.measured))
        return torch.cat(tokens), [
            one._replace(finish_reason=self._advance(slot, one.token)) for slot, one in zip(slots, sampled, strict=True)
        ]

    def _mixture_of(self, request: GuidedRequest) -> Mixture | None:
        if not (self._rows.mixes and request.mixes and request.steering):
            return None
        return Mixture.of(self._form, request.steering.weight)

    def _cut(self, slots: Sequence[_Slot]) -> list[_Block]:
        """The slots in blocks whose tables stay in a processor's cache; elsewhere all at once."""
        requests = [slot.request for slot in slots]
        size = max(1, _CACHED_NUMBERS // self._vocab_size) if self._device.type == "cpu" else len(requests)
        blocks = [slice(begin, begin + size) for begin in range(0, len(requests), max(1, size))]
        return [(rows, stack_parameters(requests[rows], self._device)) for rows in blocks]

    @torch.inference_mode()
    def _score(self, request: GuidedRequest, done: int, logits: TwinLogits) -> list[Sampled]:
        """What the distributions after positions ``done`` and on think of the prompt's next tokens."""
        told = request.prompt[done + 1 :][: len(logits.safe)]
        parameters = stack_parameters([request] * len(told), self._device)
        guided, _ = distribute(InstructedLogits(logits.select(slice(len(told)))), parameters, self._form)
        tokens = torch.tensor(told, dtype=torch.long, device=self._device)
        return describe_tokens(guided, tokens, [request.top_logprobs] * len(told), [False] * len(told))

    def _advance(self, slot: _Slot, token: int) -> FinishReason | None:
        slot.produced += 1
        if token in self._eos_ids:
            return "stop"
        return "length" if slot.produced >= slot.request.max_tokens else None


def _without_guidance(parameters: RequestParameters, mixed: Sequence[Mixed | None]) -> RequestParameters:
    """Of rows whose streams come mixed: there is nothing left to do for the weight."""
    if not any(mixed):
        return parameters
    sampling = parameters.sampling
    counts = sampling.weights.new_tensor([one is None for one in mixed])
    return parameters._replace(sampling=sampling._replace(weights=sampling.weights * counts))


def _tell_divergences(sampled: list[Sampled], mixed: Sequence[Mixed | None], divergences: torch.Tensor) -> None:
    """Those (M,) of the slots that are mixed and measured."""
    told = iter(divergences.tolist())
    for slot, one in enumerate(mixed):
        if one is not None and one.measured:
            sampled[slot] = sampled[slot]._replace(divergence=next(told))


def distribute(
    logits: InstructedLogits, parameters: RequestParameters, form: str
) -> tuple[GuidedDistribution, SamplingParameters]:
    """What the next tokens are drawn from, and how: both stages one after the other, the instruction's first."""
    (twin, instructed), (sampling, steering) = logits, parameters
    steered = None
    if instructed is not None:
        log_plain, log_below = (one.float().log_softmax(-1) for one in (twin.safe, instructed))
        steered = steer(log_plain, log_below, steering.strengths)
        cooled = adapt_temperatures(sampling.temperatures, divergence(log_plain, log_below), steering)
        sampling = sampling._replace(temperatures=cooled)
    return guided_distribution(twin.safe, twin.arm, sampling, form, twin.reference, steered), sampling


def describe_tokens(
    guided: GuidedDistribution, tokens: torch.Tensor, top_logprobs: Sequence[int | None], measured: Sequence[bool]
) -> list[Sampled]:
    """What there is to know of one token (n,) of each row, without a finish reason.

    Args:
        guided: What the tokens were drawn from.
        tokens: (n,).
        top_logprobs: How many alternatives each row tells; None: no log-probabilities at all.
        measured: Whether each row tells its divergence.
    """
    undefined = guided.log_safe.gather(-1, tokens[:, None])[:, 0].isnan()
    facts = torch.stack([tokens, guided.rejected.long(), undefined.long()], dim=1).tolist()
    described = [Sampled(token, None, rejected=bool(out), undefined=bool(none)) for token, out, none in facts]
    if rows := [row for row, wanted in enumerate(measured) if wanted]:
        for row, divergence in zip(rows, guided.select(rows).divergence.tolist(), strict=True):
            described[row] = described[row]._replace(divergence=divergence)
    if rows := [row for row, count in enumerate(top_logprobs) if count is not None]:
        told = guided.select(rows)
        parts = torch.stack(told.of(tokens[rows]), dim=1).tolist()
        for row, scores, (logprob, safe, arm, log_partition) in zip(rows, told.scores, parts, strict=True):
            best = scores.topk(top_logprobs[row] or 0)
            log_probs = (best.values - log_partition).tolist()
            top = tuple((id, p) for id, p in zip(best.indices.tolist(), log_probs, strict=True) if p > -math.inf)
            described[row] = described[row]._replace(logprob=logprob, top=top, safe_logprob=safe, arm_logprob=arm)
    return described


def _streams_of(request: GuidedRequest) -> InstructedRequest:
    preference = request.steering.preference if request.steering else None
    row = RowRequest(request.prompt, preference, request.cache_scope, request.score_prompt, request.arm_prompt)
    return InstructedRequest(row, request.instructed_prompt if request.instructing else None)
