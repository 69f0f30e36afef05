"""Metrics of requests and their tokens. Names follow vLLM's; no label names a tenant or a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram

from armature.inference.request import GuidedRequest
from armature.inference.sampler import Sampled

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_NATS = (0.001, 0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 16)


class Phase(NamedTuple):
    """A part of an answer's life: its metric's suffix and help, and when it begins and ends.

    ``begin`` and ``end`` name the times of :class:`Timeline` that it lies between.
    """

    suffix: str
    help: str
    begin: str
    end: str


PHASES = (
    Phase("request_queue_time_seconds", "Arrival to the start of prefill", "arrived", "began"),
    Phase("request_prefill_time_seconds", "Start of prefill to the first token", "began", "first"),
    Phase("request_decode_time_seconds", "First to last token", "first", "newest"),
    Phase("request_inference_time_seconds", "Start of prefill to the last token", "began", "newest"),
    Phase("e2e_request_latency_seconds", "Arrival to last token", "arrived", "newest"),
)


@dataclass
class Timeline:
    """Times of an answer in monotonic seconds: arrival, start of prefill, first and newest token.

    0: not yet.
    """

    arrived: float = 0.0
    began: float = 0.0
    first: float = 0.0
    newest: float = 0.0


@dataclass
class Progress:
    """One answer: its sequence, its times, and the number of its tokens."""

    sequence: GuidedRequest
    times: Timeline = field(default_factory=Timeline)
    tokens: int = 0


class RequestMetrics:
    """Counters and histograms over tokens, latencies and the effect of guidance."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(suffix: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"armature_{suffix}", help, buckets=buckets, registry=registry)

        def counter(suffix: str, help: str, *labels: str) -> Counter:
            return Counter(f"armature_{suffix}", help, labels, registry=registry)

        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._generation_tokens = counter("generation_tokens", "Tokens generated")
        self._success = counter("request_success", "Answers finished", "finished_reason")
        self._prompts = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._answers = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        self._longest = histogram("request_max_num_generation_tokens", "Tokens of a request's longest answer", _TOKENS)
        self._n = histogram("request_params_n", "Answers asked for", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
        self._max_tokens = histogram("request_params_max_tokens", "Tokens that an answer may have", _TOKENS)
        self._first = histogram("time_to_first_token_seconds", "Arrival to first token", _SECONDS)
        self._between = histogram("inter_token_latency_seconds", "Between two tokens", _TOKEN_SECONDS)
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "Mean between the tokens of an answer", _TOKEN_SECONDS
        )
        self._phases = {phase: histogram(phase.suffix, phase.help, _SECONDS) for phase in PHASES}
        self._divergence = histogram(
            "guided_divergence_nats", "KL of the guided distribution from the safe one, of each measured token", _NATS
        )
        self._restricted = counter("safe_set_tokens", "Tokens drawn from a safe set")
        self._rejected = counter(
            "safe_set_rejections", "Tokens for which guidance alone favours one outside the safe set"
        )

    def asked(self, prompts: Sequence[int], answers: int, max_tokens: int) -> None:
        """Count a request that was submitted, with the tokens of each of its prompts."""
        self._n.observe(answers)
        self._max_tokens.observe(max_tokens)
        for tokens in prompts:
            self._prompt_tokens.inc(tokens)
            self._prompts.observe(tokens)

    def token(self, progress: Progress, sampled: Sampled, now: float) -> None:
        """Count an answer's next token, drawn at ``now`` (monotonic seconds)."""
        times = progress.times
        if times.newest:
            self._between.observe(now - times.newest)
        else:
            times.first = now
            self._first.observe(now - times.arrived)
        times.newest = now
        if (guide := progress.sequence.active_guide) is None:
            return
        if sampled.divergence is not None:
            self._divergence.observe(sampled.divergence)
        if guide.safe_set_delta is not None:
            self._restricted.inc()
            self._rejected.inc(sampled.rejected)

    def finished(self, progress: Progress, reason: str) -> None:
        """Count a finished answer and its phases."""
        times = progress.times
        self._success.labels(reason).inc()
        self._generation_tokens.inc(progress.tokens)
        self._answers.observe(progress.tokens)
        for phase, seconds in self._phases.items():
            begin, end = getattr(times, phase.begin), getattr(times, phase.end)
            if begin and end:
                seconds.observe(end - begin)
        if progress.tokens > 1:
            self._per_token.observe((times.newest - times.first) / (progress.tokens - 1))

    def answered(self, longest: int) -> None:
        """Count a request whose answers are all finished; ``longest`` is the tokens of its longest answer."""
        self._longest.observe(longest)
