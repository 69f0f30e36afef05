"""One HTTP request's generation: ids in, pieces of text out, cancelled the moment that nobody listens any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from armature.contracts.answers import FinishReason, Usage
from armature.inference.batch import Sampled
from armature.inference.request import GuidedRequest
from armature_decoder.bundles.bundle import Runtime
from armature_decoder.engine.request import EngineRequest, Event, Failed, PromptScored
from armature_decoder.http.token_reports import Reporter, TokenReport
from armature_decoder.request_metrics import Progress, RequestMetrics, Timeline
from armature_decoder.text import Detokenizer, StopStrings


@dataclass(frozen=True)
class Piece:
    """What one token, or an echoed prompt, added to one choice. ``offset`` is where its reports' texts begin."""

    index: int
    text: str
    finish_reason: FinishReason | None
    reports: tuple[TokenReport, ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class Order:
    """One answer that is wanted.

    ``context`` are the ids before the answer that its text continues, none for a chat answer; ``echo`` is a text that
    the answer begins with. ``scored_by`` is the number of the order that asks what is thought of the prompt, if the
    answer begins with that: of several answers to one prompt only the first has to ask.
    """

    sequence: GuidedRequest
    context: Sequence[int] = ()
    echo: str | None = None
    scored_by: int | None = None

    @property
    def asks(self) -> bool:
        """Whether the model has anything to do."""
        return self.sequence.max_tokens > 0 or self.sequence.score_prompt


@dataclass
class _Choice:
    """One of the answers while it grows."""

    index: int
    order: Order
    request: EngineRequest
    reporter: Reporter
    detokenizer: Detokenizer
    stops: StopStrings
    progress: Progress
    awaits_prompt: bool
    offset: int = 0
    finish_reason: FinishReason | None = None
    early: list[Sampled] = field(default_factory=list)
    """Tokens that came before the scores of the prompt, where there are to be any."""

    def take(self, sampled: Sampled) -> Piece:
        """Turn the newest token into text."""
        ended = sampled.finish_reason == "stop"
        text = "" if ended else self.detokenizer.push(sampled.token)
        if sampled.finish_reason:
            text += self.detokenizer.flush()
        shown = self.stops.push(text)
        self.finish_reason = "stop" if self.stops.hit else sampled.finish_reason
        if self.finish_reason:
            shown += self.stops.flush()
        self.progress.tokens += not ended
        report = self.reporter.report(sampled)
        return self.piece(shown, (report,) if report else ())

    def report_prompt(self, scored: PromptScored) -> tuple[TokenReport, ...]:
        """Put the scores of the prompt into words."""
        return self.reporter.report_prompt(self.order.sequence.prompt, scored.tokens)

    def take_prompt(self, scored: PromptScored, reports: tuple[TokenReport, ...]) -> Piece:
        """Turn the scores of the prompt into an echo of it."""
        self.awaits_prompt, self.finish_reason = False, scored.finish_reason
        return self.piece(self.order.echo or "", reports)

    def open(self) -> Piece | None:
        """What there is before the engine is heard of: the echo of a prompt that is not scored."""
        if self.awaits_prompt:
            return None
        if self.order.sequence.max_tokens == 0:
            self.finish_reason = "length"
        return self.piece(self.order.echo) if self.order.echo else None

    def piece(self, text: str, reports: tuple[TokenReport, ...] = ()) -> Piece:
        """The next piece."""
        offset, self.offset = self.offset, self.offset + sum(len(report.text) for report in reports)
        return Piece(self.index, text, self.finish_reason, reports, offset)


@dataclass
class Generation:
    """The answers to one request. Whoever submits it must :meth:`cancel` it in the end, finished or not.

    Args:
        runtime: The request's bundle.
        tenant: Whose turn it takes.
        orders: One per choice.
        stops: Stop strings.
        parts: Whether tokens are reported with their parts.
        metrics: Where tokens and latencies are counted.
    """

    runtime: Runtime
    tenant: str
    orders: Sequence[Order]
    stops: Sequence[str]
    parts: bool
    metrics: RequestMetrics
    started: float = field(default_factory=time.monotonic)
    choices: list[_Choice] = field(init=False)

    def __post_init__(self) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.choices = [self._choice(index, order) for index, order in enumerate(self.orders)]

    @property
    def usage(self) -> Usage:
        """Tokens so far; a prompt counts once however many answers it gets."""
        prompt, completion = self._prompt_tokens(), sum(choice.progress.tokens for choice in self.choices)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def submit(self) -> None:
        """Hand the choices to the engine, all or none.

        Raises:
            RateLimited: Its queue is full.
        """
        asked = [choice.request for choice in self.choices if choice.order.asks]
        self.runtime.engine.submit(asked)
        self.metrics.asked([order.sequence for order in self.orders], self._prompt_tokens())

    def cancel(self) -> None:
        """Stop the choices that have no finish reason yet, before their next token."""
        if unfinished := [choice.request for choice in self.choices if choice.finish_reason is None]:
            self.runtime.engine.cancel(unfinished)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answers' text as it comes, until each has a finish reason.

        Raises:
            ArmatureError: A choice failed.
        """
        for choice in self.choices:
            if opening := choice.open():
                yield opening
        while any(choice.finish_reason is None for choice in self.choices):
            index, event = await self._events.get()
            choice = self.choices[index]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, PromptScored):  # long prompts have many tokens to be put into words
                reports = await self._loop.run_in_executor(self.runtime.loaded.encoding, choice.report_prompt, event)
                for piece in self._take_prompt(index, event, reports):
                    yield piece
            elif choice.awaits_prompt:
                choice.early.append(event)
            elif choice.finish_reason is None:  # else it met a stop string, and hears of tokens drawn meanwhile
                yield self._take(choice, event)
        self.metrics.answered(max(choice.progress.tokens for choice in self.choices))

    def _take_prompt(self, index: int, scored: PromptScored, reports: tuple[TokenReport, ...]) -> Iterator[Piece]:
        """The prompt's echo in each answer that waits for it, and what came too early to be shown."""
        for choice in self.choices:
            if choice.order.scored_by != index:
                continue
            yield choice.take_prompt(scored, reports)
            self._count_finished(choice)
            for sampled in choice.early:
                if choice.finish_reason is None:
                    yield self._take(choice, sampled)

    def _take(self, choice: _Choice, sampled: Sampled) -> Piece:
        """An answer's next piece; one that ends it before the engine does, frees its slot."""
        piece = choice.take(sampled)
        self._count(choice, sampled)
        if piece.finish_reason and not sampled.finish_reason:
            self.runtime.engine.cancel([choice.request])
        return piece

    def _choice(self, index: int, order: Order) -> _Choice:
        def sink(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        tokenizer, guided = self.runtime.loaded.tokenizer, order.sequence.steering is not None
        return _Choice(
            index,
            order,
            EngineRequest(self.tenant, order.sequence, sink),
            Reporter(tokenizer, self.parts, guided),
            Detokenizer(tokenizer, order.context),
            StopStrings(self.stops),
            Progress(order.sequence, Timeline(arrived=self.started)),
            awaits_prompt=order.scored_by is not None,
        )

    def _prompt_tokens(self) -> int:
        return sum({id(order.sequence.prompt): len(order.sequence.prompt) for order in self.orders}.values())

    def _count(self, choice: _Choice, sampled: Sampled) -> None:
        choice.progress.times.began = choice.request.began
        self.metrics.token(choice.progress, sampled, time.monotonic())
        self._count_finished(choice)

    def _count_finished(self, choice: _Choice) -> None:
        if choice.finish_reason is not None:
            self.metrics.finished(choice.progress, choice.finish_reason)
