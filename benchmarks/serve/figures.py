"""Figures of a list of answers: throughput, and percentiles of the clients' waiting times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.pairing import percentile
from benchmarks.serve.load import Answer

_PERCENTILES = (50, 95, 99)
_MOMENT = 0.5
"""Seconds within which answers that are sent together arrive."""


def saturated_throughput(answers: Iterable[Answer]) -> float:
    """Tokens per second while requests wait: from the first token to the last request's first token.

    The window for tokens is shifted by a moment, so that answers sent together count as a whole or not at all.
    """
    begins = [answer.tokens[0] for answer in answers]
    begin, end = min(begins), max(begins)
    tokens = sum(begin <= token - _MOMENT < end for answer in answers for token in answer.tokens)
    return tokens / (end - begin)


def describe_waiting(answers: Sequence[Answer]) -> dict[str, Any]:
    """Describe time to first token, between tokens and to the last token, in percentiles (milliseconds)."""
    samples = {
        "ttft_ms": [answer.first_token for answer in answers],
        "itl_ms": [gap for answer in answers for gap in answer.gaps()],
        "latency_ms": [answer.latency for answer in answers],
    }
    return {"requests": len(answers), **{name: describe(sample) for name, sample in samples.items()}}


def describe(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles of a sample in milliseconds."""
    return {f"p{percent}": round(1000 * percentile(seconds, percent), 2) for percent in _PERCENTILES}
