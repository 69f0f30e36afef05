"""The parts of a call without input or output: request, retry policy, reading an answer."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx

from armature.client.errors import seconds_to_wait
from armature.contracts.base import View

V = TypeVar("V", bound=View)

_FIRST_BACK_OFF, _MAX_BACK_OFF, _MAX_RETRY_AFTER = 0.5, 8.0, 60.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Call:
    """A request without address and API key."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    data: Mapping[str, str] | None = None
    files: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def repeatable(self) -> Call:
        """Add an idempotency key to a POST, so that a retry has no second effect."""
        if self.method != "POST" or "Idempotency-Key" in self.headers:
            return self
        return replace(self, headers={**self.headers, "Idempotency-Key": f"sdk-{secrets.token_hex(16)}"})

    def arguments(self) -> dict[str, Any]:
        """Make the arguments for httpx, without query parameters that are None."""
        given = {"json": self.json, "data": self.data, "files": self.files}
        params = {name: value for name, value in self.params.items() if value is not None}
        return {
            "method": self.method,
            "url": self.path,
            "params": params,
            "headers": dict(self.headers),
            **{name: value for name, value in given.items() if value is not None},
        }


def pause_before_retry(attempt: int, response: httpx.Response | None) -> float | None:
    """Choose the seconds to wait before a retry; None if a retry cannot help.

    Args:
        attempt: Number of attempts so far, from 1.
        response: The answer; None if there was none.
    """
    if response is not None:
        should_retry = response.headers.get("x-should-retry")
        if should_retry == "false" or (should_retry != "true" and response.status_code not in _RETRIED):
            return None
        if (seconds := seconds_to_wait(response)) is not None and seconds <= _MAX_RETRY_AFTER:
            return seconds
    longest: float = min(_MAX_BACK_OFF, _FIRST_BACK_OFF * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


def read(view: type[V], response: httpx.Response) -> V:
    """Parse an answer as a view, with the id of its request."""
    return view.model_validate(response.json()).answering(response.headers.get("x-request-id"))
