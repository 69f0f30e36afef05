"""Open-loop load: requests sent at given times, answered or not, and their tokens' arrivals.

Prompts have 16 to 64 tokens, uniformly. Answers are exponentially distributed (mean 32 tokens, cut to 4 to 128), as
lengths in logs of chat services roughly are: most are short, and a batch nearly always holds a long one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field

import httpx

from armature.contracts.preferences import ATTRIBUTES
from benchmarks.serve.installation import PROFILE, Installation

_PROMPT_TOKENS = (16, 64)
_ANSWER_MEAN = 32
_ANSWER_TOKENS = (4, 128)
_TIMEOUT = 600.0


def describe_load() -> dict[str, object]:
    """Describe the lengths for a report."""
    return {"prompt_tokens": _PROMPT_TOKENS, "answer_tokens": _ANSWER_TOKENS, "answer_mean": _ANSWER_MEAN}


@dataclass(frozen=True)
class Arrival:
    """A request and the time to send it, in seconds from the start."""

    at: float
    body: dict[str, object]


@dataclass
class Answer:
    """A request's answer so far; times are those of ``time.perf_counter``."""

    asked: float
    tokens: list[float] = field(default_factory=list)
    """Arrival time of each token."""
    version: int = 0
    """Version of the profile that answers; 0 before the first event."""
    complete: bool = False
    """Whether the stream ended with ``[DONE]`` after some token."""
    failure: str = ""

    @property
    def first_token(self) -> float:
        """Seconds from the request to its first token."""
        return self.tokens[0] - self.asked

    @property
    def latency(self) -> float:
        """Seconds from the request to its last token."""
        return self.tokens[-1] - self.asked

    def gaps(self, begin: float = -math.inf, end: float = math.inf) -> list[float]:
        """Seconds from each token that arrived in ``[begin, end)`` to the one after it."""
        return [after - before for before, after in itertools.pairwise(self.tokens) if begin <= after < end]


def arrivals(installation: Installation, rate: float, seed: int) -> Iterator[Arrival]:
    """Yield a Poisson process of ``rate`` requests per second without end; ``math.inf``: all at once.

    The same seed gives the same requests at any rate.
    """
    draw, at = random.Random(seed), 0.0
    while True:
        at += draw.expovariate(1.0) / rate
        answer = round(draw.expovariate(1 / _ANSWER_MEAN))
        weights = [draw.random() for _ in ATTRIBUTES]
        yield Arrival(
            at,
            {
                "model": PROFILE,
                "prompt": installation.prompt(draw.randint(*_PROMPT_TOKENS), draw),
                "max_tokens": min(max(answer, _ANSWER_TOKENS[0]), _ANSWER_TOKENS[1]),
                "preference": {name: w / sum(weights) for name, w in zip(ATTRIBUTES, weights, strict=True)},
                "seed": draw.getrandbits(32),
                "stream": True,
            },
        )


async def play(url: str, token: str, trace: Iterable[Arrival], answers: list[Answer]) -> None:
    """Send every request at its time, whether or not earlier ones are answered, and wait for all answers.

    Args:
        url: Address of the decoder.
        token: The API key.
        trace: The requests.
        answers: List to which each request appends its answer when it is sent.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=_TIMEOUT) as http,
        asyncio.TaskGroup() as tasks,
    ):
        started = time.perf_counter()
        for arrival in trace:
            await asyncio.sleep(started + arrival.at - time.perf_counter())
            answers.append(Answer(time.perf_counter()))
            tasks.create_task(_ask(http, arrival, answers[-1]))


async def _ask(http: httpx.AsyncClient, arrival: Arrival, answer: Answer) -> None:
    try:
        async with http.stream("POST", "/v1/completions", json=arrival.body) as response:
            if not response.is_success:
                answer.failure = (await response.aread()).decode()
                return
            async for event in _events(response):
                _note(event, answer)
    except httpx.HTTPError as error:
        answer.failure = repr(error)
    if not (answer.complete or answer.failure):
        answer.failure = "the stream ended early"


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _note(event: str, answer: Answer) -> None:
    now = time.perf_counter()
    if event == "[DONE]":
        answer.complete = bool(answer.tokens)
        return
    data = json.loads(event)
    if "error" in data:
        answer.failure = event
    elif not answer.version:  # the first event names the version and has no token
        answer.version = data["alignment"]["version"]
    else:
        answer.tokens.append(now)
