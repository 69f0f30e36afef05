"""One HTTP request's generation: ids in, pieces of text out, cancelled as soon as the client is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from armature.contracts.answers import FinishReason, Usage
from armature.inference.request import GuidedRequest
from armature.inference.sampler import Sampled
from armature_decoder.bundles.bundle import Runtime
from armature_decoder.engine.request import EngineRequest, Event, Failed, PromptScored
from armature_decoder.http.token_reports import Reporter, TokenReport
from armature_decoder.request_metrics import Progress, RequestMetrics, Timeline
from armature_decoder.text import Detokenizer, StopStrings, special_stops


@dataclass(frozen=True)
class Piece:
    """The text that a token or an echoed prompt adds to a choice; its reports begin at ``offset``."""

    index: int
    text: str
    finish_reason: FinishReason | None
    reports: tuple[TokenReport, ...] = ()
    offset: int = 0


@dataclass
class Choice:
    """One of the answers while it grows.

    ``stop_ids`` are the special tokens among the stops, which are no text.
    ``echo`` is a text that the answer begins with. ``scored_by`` is the index of the choice that has the prompt scored,
    where the answer begins with these scores: of several answers to one prompt only the first has to.
    """

    index: int
    request: EngineRequest
    reporter: Reporter
    detokenizer: Detokenizer
    stops: StopStrings
    progress: Progress
    stop_ids: frozenset[int] = frozenset()
    echo: str | None = None
    scored_by: int | None = None
    offset: int = 0
    finish_reason: FinishReason | None = None
    early: list[Sampled] = field(default_factory=list)
    """Tokens that came before the scores of the prompt, where there are to be any."""
    awaits_prompt: bool = field(init=False)

    def __post_init__(self) -> None:
        self.awaits_prompt = self.scored_by is not None

    @property
    def sequence(self) -> GuidedRequest:
        """The sequence that the engine generates for it."""
        return self.request.sequence

    def take(self, sampled: Sampled) -> Piece:
        """Turn the newest token into text."""
        ended = sampled.finish_reason == "stop" or sampled.token in self.stop_ids
        text = "" if ended else self.detokenizer.push(sampled.token)
        if sampled.finish_reason or ended:
            text += self.detokenizer.flush()
        shown = self.stops.push(text)
        self.finish_reason = "stop" if self.stops.hit or ended else sampled.finish_reason
        if self.finish_reason:
            shown += self.stops.flush()
        self.progress.tokens += not ended
        report = self.reporter.report(sampled)
        return self.piece(shown, (report,) if report else ())

    def take_prompt(self, scored: PromptScored, reports: tuple[TokenReport, ...]) -> Piece:
        """Turn the scores of the prompt into an echo of it."""
        self.awaits_prompt, self.finish_reason = False, scored.finish_reason
        return self.piece(self.echo or "", reports)

    def open(self) -> Piece | None:
        """Return the piece before the engine's first event: the echo of a prompt that is not scored.

        If no token is asked for, it is the last one too.
        """
        if self.awaits_prompt:
            return None
        if self.sequence.max_tokens == 0:
            self.finish_reason = "length"
        return self.piece(self.echo or "") if self.echo or self.finish_reason else None

    def piece(self, text: str, reports: tuple[TokenReport, ...] = ()) -> Piece:
        """Make the next piece."""
        offset, self.offset = self.offset, self.offset + sum(len(report.text) for report in reports)
        return Piece(self.index, text, self.finish_reason, reports, offset)


@dataclass
class Generation:
    """The answers to one HTTP request. Once submitted it must be cancelled in the end, finished or not.

    Args:
        runtime: The request's bundle.
        tenant: The tenant that it counts for.
        stops: Stop strings.
        with_parts: Whether tokens are reported with their parts.
        metrics: Counts tokens and latencies.
        prompts: Tokens of each prompt, which may have several answers.
    """

    runtime: Runtime
    tenant: str
    stops: Sequence[str]
    with_parts: bool
    metrics: RequestMetrics
    prompts: Sequence[int]
    started: float = field(default_factory=time.monotonic)
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def usage(self) -> Usage:
        """Tokens so far; a prompt counts once, for all of its answers."""
        prompt, completion = sum(self.prompts), sum(choice.progress.tokens for choice in self.choices)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def add(
        self,
        sequence: GuidedRequest,
        context: Sequence[int] = (),
        echo: str | None = None,
        scored_by: int | None = None,
    ) -> None:
        """Add a choice.

        Args:
            sequence: What the engine generates.
            context: Ids before the answer that its text continues; none for a chat answer.
            echo: See :class:`Choice`.
            scored_by: See :class:`Choice`.
        """
        index, tokenizer = len(self.choices), self.runtime.loaded.tokenizer

        def sink(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        self.choices.append(
            Choice(
                index,
                EngineRequest(self.tenant, sequence, sink),
                Reporter(tokenizer, self.with_parts, guided=sequence.active_guide is not None),
                Detokenizer(tokenizer, context),
                StopStrings(self.stops),
                Progress(sequence, Timeline(arrived=self.started)),
                special_stops(tokenizer, self.stops),
                echo,
                scored_by,
            )
        )

    def submit(self) -> None:
        """Queue the choices in the engine, all or none.

        Raises:
            RateLimited: Its queue is full.
        """
        asked = [one.request for one in self.choices if one.sequence.max_tokens or one.sequence.score_prompt]
        self.runtime.engine.submit(asked)
        self.metrics.asked(self.prompts, len(self.choices), self.choices[0].sequence.max_tokens)

    def cancel(self) -> None:
        """Cancel the choices without a finish reason, before their next token."""
        if unfinished := [choice.request for choice in self.choices if choice.finish_reason is None]:
            self.runtime.engine.cancel(unfinished)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the answers' text as it is generated, until each has a finish reason.

        Raises:
            ArmatureError: A choice failed.
        """
        for choice in self.choices:
            if opening := choice.open():
                self._count_finished(choice)
                yield opening
        while any(choice.finish_reason is None for choice in self.choices):
            index, event = await self._events.get()
            choice = self.choices[index]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, PromptScored):  # a long prompt has many tokens to decode
                report = partial(choice.reporter.report_prompt, choice.sequence.prompt, event.tokens)
                reports = await self._loop.run_in_executor(self.runtime.loaded.encoding, report)
                for piece in self._take_prompt(index, event, reports):
                    yield piece
            elif choice.awaits_prompt:
                choice.early.append(event)
            elif choice.finish_reason is None:  # else it met a stop string, and this token was drawn meanwhile
                yield self._take(choice, event)
        self.metrics.answered(max(choice.progress.tokens for choice in self.choices))

    def _take_prompt(self, index: int, scored: PromptScored, reports: tuple[TokenReport, ...]) -> Iterator[Piece]:
        """The prompt's echo in each answer that waits for it, and the tokens that came too early to be shown."""
        for choice in self.choices:
            if choice.scored_by != index:
                continue
            yield choice.take_prompt(scored, reports)
            self._count_finished(choice)
            for sampled in choice.early:
                if choice.finish_reason is None:
                    yield self._take(choice, sampled)

    def _take(self, choice: Choice, sampled: Sampled) -> Piece:
        """An answer's next piece; a choice that ends before the engine ends it frees its slot."""
        piece = choice.take(sampled)
        self._count(choice, sampled)
        if piece.finish_reason and not sampled.finish_reason:
            self.runtime.engine.cancel([choice.request])
        return piece

    def _count(self, choice: Choice, sampled: Sampled) -> None:
        choice.progress.times.began = choice.request.began
        self.metrics.token(choice.progress, sampled, time.monotonic())
        self._count_finished(choice)

    def _count_finished(self, choice: Choice) -> None:
        if choice.finish_reason is not None:
            self.metrics.finished(choice.progress, choice.finish_reason)
