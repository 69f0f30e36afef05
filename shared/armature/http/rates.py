"""Rate limits per minute: fixed-window counters, refusals, and the headers that report them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, Protocol

from armature.errors import RateLimited

MINUTE = 60


class Counter(Protocol):
    """A counter by key whose sums start at zero every minute."""

    def add(self, key: str, amount: int) -> int:
        """Add ``amount`` to the key's sum of this minute and return the sum."""


class LocalCounter:
    """A counter within this process. It holds the current minute only, so its memory stays bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute = 0
        self._sums: defaultdict[str, int] = defaultdict(int)

    def add(self, key: str, amount: int) -> int:
        """Add ``amount`` to the key's sum of this minute and return the sum."""
        with self._lock:
            if (minute := this_minute()) != self._minute:
                self._minute = minute
                self._sums.clear()
            self._sums[key] += amount
            return self._sums[key]


@dataclass
class WrongKeys:
    """A throttle of addresses that send too many wrong API keys: refused until the minute is over."""

    counter: Counter
    limit: int
    _blocked: dict[str, int] = field(default_factory=dict)

    def check(self, address: str) -> None:
        """Refuse a blocked address.

        Raises:
            RateLimited: The address is blocked for the rest of the minute.
        """
        if self._blocked.get(address) == this_minute():
            raise too_many("too many wrong API keys from this address")

    def note(self, address: str) -> None:
        """Count a wrong key of ``address``, and block the address at the limit."""
        if self.counter.add(f"wrong-keys:{address}", 1) >= self.limit:
            minute = this_minute()
            self._blocked = {known: at for known, at in self._blocked.items() if at == minute} | {address: minute}


@dataclass(frozen=True)
class Rate:
    """A rate limit and how much of it is used in this minute."""

    unit: Literal["requests", "tokens"]
    limit: int
    used: int

    def headers(self) -> dict[str, str]:
        """Return the ``x-ratelimit-*`` headers of OpenAI's API."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(max(0, self.limit - self.used)),
            f"x-ratelimit-reset-{self.unit}": f"{seconds_left()}s",
        }

    def check(self) -> None:
        """Refuse a request beyond the limit.

        Raises:
            RateLimited: More than the limit is used.
        """
        if self.used > self.limit:
            raise too_many(f"more than {self.limit} {self.unit} a minute", self.headers())


def too_many(message: str, headers: dict[str, str] | None = None) -> RateLimited:
    """Build a refusal whose ``Retry-After`` is the end of the minute."""
    return RateLimited(message, headers={**(headers or {}), "Retry-After": str(seconds_left())})


def this_minute() -> int:
    """Return the number of the current minute since the epoch."""
    return int(time.time()) // MINUTE


def seconds_left() -> int:
    """Return the seconds until the next minute, at least 1."""
    return MINUTE - int(time.time()) % MINUTE
