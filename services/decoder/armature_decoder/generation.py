"""One HTTP request's generation: ids in, pieces of text out, cancelled the moment that nobody listens any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from armature.contracts.generation import ChoiceLogprobs, ContentLogprob, FinishReason, TokenLogprob, Usage
from armature.modeling.guided_batch import GuidedRequest, Sampled
from armature_decoder.engine.engine import Engine
from armature_decoder.engine.request import EngineRequest, Event, Failed
from armature_decoder.metrics import RequestMetrics
from armature_decoder.text import Detokenizer, StopStrings


@dataclass(frozen=True)
class Piece:
    """What one token added to one choice."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: ChoiceLogprobs | None


@dataclass
class _Choice:
    """One of the ``n`` answers while it grows."""

    request: EngineRequest
    tokenizer: PreTrainedTokenizerBase
    detokenizer: Detokenizer
    stops: StopStrings
    tokens: int = 0
    newest_at: float = 0.0
    finish_reason: FinishReason | None = None

    def take(self, index: int, sampled: Sampled) -> Piece:
        """Turn the newest token into text."""
        ended = sampled.finish_reason == "stop"
        text = "" if ended else self.detokenizer.push(sampled.token)
        if sampled.finish_reason:
            text += self.detokenizer.flush()
        shown = self.stops.push(text)
        self.finish_reason = "stop" if self.stops.hit else sampled.finish_reason
        if self.finish_reason:
            shown += self.stops.flush()
        self.tokens += not ended
        logprobs = None if ended or sampled.logprob is None else self._logprobs(sampled, sampled.logprob)
        return Piece(index, shown, self.finish_reason, logprobs)

    def _logprobs(self, sampled: Sampled, logprob: float) -> ChoiceLogprobs:
        chosen = self._token(sampled.token, logprob)
        top = [self._token(id, value) for id, value in sampled.top]
        return ChoiceLogprobs(content=[ContentLogprob(**chosen.model_dump(), top_logprobs=top)])

    def _token(self, id: int, logprob: float) -> TokenLogprob:
        text = self.tokenizer.decode([id])
        return TokenLogprob(token=text, logprob=logprob, bytes=None if "�" in text else list(text.encode()))


@dataclass
class Generation:
    """The ``n`` answers to one request. Whoever submits it must :meth:`cancel` it in the end, finished or not.

    Args:
        engine: Of the request's bundle.
        tenant: Whose turn it takes.
        sequences: One per choice.
        tokenizer: Of the bundle.
        stops: Stop strings.
        context: Ids before the answer that its text continues; empty for a chat answer.
        metrics: Where tokens and latencies are counted.
    """

    engine: Engine
    tenant: str
    sequences: Sequence[GuidedRequest]
    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[str]
    context: Sequence[int]
    metrics: RequestMetrics
    started: float = field(default_factory=time.monotonic)
    choices: list[_Choice] = field(init=False)

    def __post_init__(self) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.choices = [self._choice(index, sequence) for index, sequence in enumerate(self.sequences)]

    @property
    def usage(self) -> Usage:
        """Tokens so far; the prompt counts once."""
        prompt, completion = len(self.sequences[0].prompt), sum(choice.tokens for choice in self.choices)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def submit(self) -> None:
        """Hand the choices to the engine, all or none.

        Raises:
            RateLimited: Its queue is full.
        """
        self.engine.submit([choice.request for choice in self.choices])
        self.metrics.prompt_tokens.inc(len(self.sequences[0].prompt))

    def cancel(self) -> None:
        """Stop the choices that have no finish reason yet, before their next token."""
        if unfinished := [choice.request for choice in self.choices if choice.finish_reason is None]:
            self.engine.cancel(unfinished)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answers' text as it comes, until each has a finish reason.

        Raises:
            ArmatureError: A choice failed.
        """
        while any(choice.finish_reason is None for choice in self.choices):
            index, event = await self._events.get()
            choice = self.choices[index]
            if isinstance(event, Failed):
                raise event.error
            if choice.finish_reason is not None:  # it met a stop string, and hears of tokens drawn meanwhile
                continue
            piece = choice.take(index, event)
            self._count(choice)
            if piece.finish_reason and not event.finish_reason:
                self.engine.cancel([choice.request])
            yield piece

    def _choice(self, index: int, sequence: GuidedRequest) -> _Choice:
        def sink(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        detokenizer = Detokenizer(self.tokenizer, self.context)
        return _Choice(EngineRequest(self.tenant, sequence, sink), self.tokenizer, detokenizer, StopStrings(self.stops))

    def _count(self, choice: _Choice) -> None:
        now = time.monotonic()
        if choice.newest_at:
            self.metrics.between_tokens.observe(now - choice.newest_at)
        else:
            self.metrics.first_token.observe(now - self.started)
        choice.newest_at = now
        if choice.finish_reason is None:
            return
        self.metrics.generation_tokens.inc(choice.tokens)
        self.metrics.whole.observe(now - self.started)
        self.metrics.success.labels(choice.finish_reason).inc()
