"""Guided generation for many requests at once: continuous batching, and one sampler over all of them.

Each request brings its own preference, guidance weight, safe set, sampling parameters and seed, and draws from a
generator of its own (docs/traps.md, 23), so its tokens do not depend on its neighbours in the batch. The decoder's
engine and the worker's evaluation both generate through :class:`GuidedBatch`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from armature.algorithms.guided_decoding import Mixture, choose_tokens, safe_divergence
from armature.inference.logits import Combination, ReadPlan, StreamLogits
from armature.inference.model import GuidedModel, start_runner
from armature.inference.prefix_cache import PrefixCache
from armature.inference.request import GuidedRequest, RequestParameters, stack_parameters
from armature.inference.runner import Prefill, staying
from armature.inference.sampler import (
    FinishReason,
    Sampled,
    add_divergences,
    check_defined,
    describe_tokens,
    distribute,
)
from armature.inference.stream import Role, Stream

SCORED_AT_ONCE = 128
"""Tokens of a prompt that are scored together: the logits of each are as wide as the vocabulary."""

_SWEEP = 8
"""Evict when one slot in eight has finished: each eviction copies the cache, each idle slot wastes its rows."""

_CACHED_NUMBERS = 1 << 19
"""Numbers of a table over the vocabulary that are worked on at once: a step makes a dozen of such tables, and what fits
into a processor's cache is read fastest."""

_Block = tuple[slice, RequestParameters]
"""Slots whose tokens are drawn together."""


def sample_sequences(model: GuidedModel, requests: Sequence[GuidedRequest], max_slots: int = 64) -> list[list[Sampled]]:
    """Generate all requests, at most ``max_slots`` side by side.

    The next ones join once an eighth of those that run has ended.

    Returns:
        Every token of each request; the last one has a finish reason.

    Raises:
        NonFiniteLogits: The base model overflows on one of them.
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
        finished = [slot for slot, index in enumerate(running) if _is_finished(outputs[index])]
        if len(finished) * _SWEEP >= len(running):
            batch.evict(finished)
            running = [running[slot] for slot in staying(len(running), finished)]
    return outputs


def _is_finished(sequence: list[Sampled]) -> bool:
    return bool(sequence) and sequence[-1].finish_reason is not None


@dataclass
class _Slot:
    """A running request: its streams, its generator, and its tokens so far.

    ``mixture`` is how the runner combines its streams; None: they are read apart. ``number`` counts requests.
    """

    request: GuidedRequest
    streams: dict[Role, Stream]
    mixture: Mixture | None
    number: int
    generator: torch.Generator = field(init=False)
    produced: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.request.seed)

    @property
    def measured(self) -> bool:
        """Whether the next token's divergence is measured; staggered, so that no step measures all slots."""
        return (self.number + self.produced) % self.request.measured_every == 0

    @property
    def combination(self) -> Combination | None:
        """How the streams are read for the next token."""
        return None if self.mixture is None else Combination(self.mixture, self.measured)

    def draw(self) -> torch.Tensor:
        return torch.rand((), generator=self.generator, dtype=torch.float64)


@dataclass
class _Layout:
    """What stays the same until the next join or eviction.

    ``rows`` are each slot's rows by role, ``feeds`` the slot whose token each row is fed, ``blocks`` cover the slots.
    """

    rows: list[dict[Role, int]]
    feeds: torch.Tensor
    blocks: list[_Block]
    _plan: tuple[list[Combination | None], ReadPlan] | None = None

    def plan_reads(self, combinations: list[Combination | None]) -> ReadPlan:
        """The latest plan while the same is wanted."""
        if self._plan is None or self._plan[0] != combinations:
            self._plan = combinations, ReadPlan.of(self.rows, combinations, self.feeds.device)
        return self._plan[1]


@dataclass(eq=False)
class Joining:
    """Requests on their way into a batch: their prompts can be computed in pieces, between its steps.

    ``scored`` describes the tokens of a request's prompt, each but the first, as far as it is computed. A request that
    asks for that begins alone.
    """

    slots: list[_Slot]
    prefill: Prefill[Any]
    scored: list[Sampled] = field(default_factory=list)


class GuidedBatch:
    """Running requests in slots 0 to ``len(batch) - 1``. They join and leave between steps.

    A :meth:`join` that raises leaves the batch as it was; after a :meth:`step` or an :meth:`evict` that raises, only
    :meth:`clear` may follow.

    Args:
        model: The model.
        prefixes: Its own prefix cache; runners that can, use it.
    """

    def __init__(self, model: GuidedModel, prefixes: PrefixCache | None = None) -> None:
        self._model = model
        self._form = model.loss_form or "reference"
        self._device = model.model.device
        self._runner = start_runner(model, prefixes)
        self._begun = itertools.count()
        self._slots: list[_Slot]
        self._newest: torch.Tensor
        self.clear()

    def __len__(self) -> int:
        """The number of slots."""
        return len(self._slots)

    def begin(self, requests: Sequence[GuidedRequest]) -> Joining:
        """Begin with new requests; nothing of their prompts is computed yet. To abandon them, drop the result.

        Raises:
            ValueError: A prompt is to be scored beside others, or under streams that read another prompt.
            InvalidRequest: A preference that the adapter does not take.
        """
        slots = [self._open(request) for request in requests]
        if any(one.request.score_prompt and (len(slots) > 1 or one.streams.keys() - {"safe", "arm"}) for one in slots):
            raise ValueError("a prompt is scored alone, and only if all of its request's streams read it")
        streams = [stream for slot in slots for stream in slot.streams.values()]
        return Joining(slots, self._runner.prefill(streams, every_position=requests[0].score_prompt))

    def advance(self, joining: Joining, tokens: int) -> int:
        """Compute about ``tokens`` more tokens of the prompts, over all streams; returns the number computed."""
        request = joining.slots[0].request
        if not request.score_prompt:
            return self._runner.extend(joining.prefill, tokens)
        computed = self._runner.extend(joining.prefill, min(tokens, SCORED_AT_ONCE))
        joining.scored.extend(self._score(joining))
        return computed

    def join(self, joining: Joining) -> list[Sampled]:
        """Compute the prompts' rest, move the requests into the next slots and return their first tokens."""
        while joining.prefill.remaining:
            self.advance(joining, sys.maxsize)
        assert joining.prefill.logits is not None
        uncombined = [None] * len(joining.slots)
        plan = ReadPlan.of(_rows_of(joining.slots), uncombined, self._device)
        logits = plan.gather(joining.prefill.logits[[read.row for read in plan.reads]])
        tokens, sampled = self._sample(logits, joining.slots, self._cut(joining.slots), uncombined)
        slots, newest = [*self._slots, *joining.slots], torch.cat([self._newest, tokens])
        layout = self._lay_out(slots)
        self._runner.join(joining.prefill)  # last: nothing that follows can fail
        self._slots, self._newest, self._layout = slots, newest, layout
        return sampled

    def step(self) -> list[Sampled]:
        """Generate the next token of every slot."""
        combinations = [slot.combination for slot in self._slots]
        plan = self._layout.plan_reads(combinations)
        logits = plan.gather(self._runner.decode(self._newest[self._layout.feeds], plan.reads))
        self._newest, sampled = self._sample(logits, self._slots, self._layout.blocks, combinations)
        return sampled

    def evict(self, slots: Sequence[int]) -> None:
        """Free these slots; the others move up in their order."""
        self._runner.evict([row for slot in slots for row in self._layout.rows[slot].values()])
        kept = staying(len(self), slots)
        self._slots = [self._slots[slot] for slot in kept]
        self._newest = self._newest[torch.tensor(kept, dtype=torch.long, device=self._device)]
        self._layout = self._lay_out(self._slots)

    def clear(self) -> None:
        """Free all slots, in whatever state a failure has left them."""
        self._runner.clear()
        self._slots = []
        self._newest = torch.zeros(0, dtype=torch.long, device=self._device)
        self._layout = self._lay_out([])

    def _open(self, request: GuidedRequest) -> _Slot:
        streams, mixture, guide = request.streams(), None, request.active_guide
        if guide and bool(request.arm_prompt) != (self._model.arm is not None):
            raise ValueError("a request has an arm_prompt if the ARM is on a model of its own, and else none")
        if self._runner.combines and request.combines and guide:
            mixture = Mixture.of(self._form, guide.weight)
        return _Slot(request, streams, mixture, next(self._begun))

    def _lay_out(self, slots: list[_Slot]) -> _Layout:
        rows = _rows_of(slots)
        feeds = [slot for slot, own in enumerate(rows) for _ in own]
        return _Layout(rows, torch.tensor(feeds, dtype=torch.long, device=self._device), self._cut(slots))

    @torch.inference_mode()
    def _sample(
        self,
        logits: StreamLogits,
        slots: list[_Slot],
        blocks: list[_Block],
        combinations: Sequence[Combination | None],
    ) -> tuple[torch.Tensor, list[Sampled]]:
        uniforms = torch.stack([slot.draw() for slot in slots]).to(self._device)
        tokens, sampled, scores = [], list[Sampled](), list[torch.Tensor]()
        for part, parameters in blocks:
            requests, combined = [slot.request for slot in slots[part]], combinations[part]
            own = logits.select(part, instructed=any(request.active_instruction for request in requests))
            guided, sampling = distribute(own, parameters.without_guides(combined), self._form)
            tokens.append(choose_tokens(guided, sampling, uniforms[part]))
            measured = [slot.measured and one is None for slot, one in zip(slots[part], combined, strict=True)]
            sampled += describe_tokens(guided, tokens[-1], [request.top_logprobs for request in requests], measured)
            scores += [guided.scores[row] for row, one in enumerate(combined) if one and one.measured]
        if logits.measured is not None:
            measured_slots = [slot for slot, one in enumerate(combinations) if one and one.measured]
            add_divergences(sampled, measured_slots, safe_divergence(torch.stack(scores), logits.measured))
        return torch.cat(tokens), [
            one._replace(finish_reason=self._advance(slot, one.token)) for slot, one in zip(slots, sampled, strict=True)
        ]

    def _cut(self, slots: Sequence[_Slot]) -> list[_Block]:
        """Cut the slots into blocks whose tables stay in a processor's cache; on other devices, one block."""
        requests = [slot.request for slot in slots]
        size = max(1, _CACHED_NUMBERS // self._model.vocab_size) if self._device.type == "cpu" else len(requests)
        blocks = [slice(begin, begin + size) for begin in range(0, len(requests), max(1, size))]
        return [(part, stack_parameters(requests[part], self._device)) for part in blocks]

    @torch.inference_mode()
    def _score(self, joining: Joining) -> list[Sampled]:
        """Describe the prompt's tokens that follow the newest computed positions."""
        (slot,), newest = joining.slots, joining.prefill.newest
        assert newest is not None
        done, request = len(joining.scored), slot.request
        following = request.prompt[done + 1 :][: newest.shape[1]]
        (rows,) = _rows_of([slot])
        safe, arm = rows["safe"], rows.get("arm", rows["safe"])
        logits = StreamLogits(newest[safe, : len(following)], newest[arm, : len(following)])
        parameters = stack_parameters([request] * len(following), self._device)
        guided, _ = distribute(logits, parameters, self._form)
        tokens = torch.tensor(following, dtype=torch.long, device=self._device)
        return describe_tokens(guided, tokens, [request.top_logprobs] * len(following), [False] * len(following))

    def _advance(self, slot: _Slot, token: int) -> FinishReason | None:
        slot.produced += 1
        if token in self._model.eos_ids:
            return "stop"
        return "length" if slot.produced >= slot.request.max_tokens else None


def _rows_of(slots: Sequence[_Slot]) -> list[dict[Role, int]]:
    """Each slot's row by role: a runner keeps streams in the order in which they joined."""
    rows = itertools.count()
    return [{role: next(rows) for role in slot.streams} for slot in slots]
