"""What a list of answers says: throughput, and percentiles of what their clients waited for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.pairing import percentile
from benchmarks.serve.load import Answer

_PERCENTILES = (50, 95, 99)
_MOMENT = 0.5
"""Seconds in which answers that are sent together arrive."""


def saturated_throughput(answers: Iterable[Answer]) -> float:
    """Tokens a second while somebody waits: from the first token to the last request's first token.

    Tokens are counted a moment later at both ends, so that answers that come together count as a whole or not at all.
    """
    begins = [answer.tokens[0] for answer in answers]
    begin, end = min(begins), max(begins)
    tokens = sum(begin <= token - _MOMENT < end for answer in answers for token in answer.tokens)
    return tokens / (end - begin)


def describe_waiting(answers: Sequence[Answer]) -> dict[str, Any]:
    """Percentiles in milliseconds of time to first token, time between tokens, and time to the last token."""
    samples = {
        "ttft_ms": [answer.first_token for answer in answers],
        "itl_ms": [gap for answer in answers for gap in answer.gaps()],
        "latency_ms": [answer.latency for answer in answers],
    }
    return {"requests": len(answers), **{name: describe(sample) for name, sample in samples.items()}}


def describe(seconds: Sequence[float]) -> dict[str, float]:
    """The percentiles of a sample, in milliseconds."""
    return {f"p{percent}": round(1000 * percentile(seconds, percent), 2) for percent in _PERCENTILES}
