"""The part of a call that needs no input or output: what is asked, when to ask again, how an answer is read."""

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

_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_RETRY_AFTER = 0.5, 8.0, 60.0
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Call:
    """A request, before it is known where to and with which key."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    data: Mapping[str, str] | None = None
    files: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def repeatable(self) -> Call:
        """The same call, with a key by which the platform knows it again when it comes twice."""
        if self.method != "POST" or "Idempotency-Key" in self.headers:
            return self
        return replace(self, headers={**self.headers, "Idempotency-Key": f"sdk-{secrets.token_hex(16)}"})

    def arguments(self) -> dict[str, Any]:
        """For httpx; parameters that are None are left out."""
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
    """Seconds to wait before trying again, or None where that is no use.

    Args:
        attempt: How often it was tried already, from 1.
        response: The answer; None when there was none.
    """
    if response is not None:
        steering = response.headers.get("x-should-retry")
        if steering == "false" or (steering != "true" and response.status_code not in _AGAIN):
            return None
        if (told := seconds_to_wait(response)) is not None and told <= _LONGEST_RETRY_AFTER:
            return told
    longest: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


def read(view: type[V], response: httpx.Response) -> V:
    """The answer as a view that remembers its request's id."""
    return view.model_validate(response.json()).answering(response.headers.get("x-request-id"))
