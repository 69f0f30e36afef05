"""Rates per minute: counting in whole minutes, refusing what is beyond, and the headers that tell a client."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, Protocol

from armature.errors import RateLimited

MINUTE = 60


class Counter(Protocol):
    """Adds up amounts by key; every minute begins at zero."""

    def add(self, key: str, amount: int) -> int:
        """Add to the key's sum of this minute; the sum."""


class LocalCounter:
    """Counts within this process. It holds the current minute only, so an idle one holds nothing for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute = 0
        self._sums: defaultdict[str, int] = defaultdict(int)

    def add(self, key: str, amount: int) -> int:
        """Add to the key's sum of this minute; the sum."""
        with self._lock:
            if (minute := this_minute()) != self._minute:
                self._minute = minute
                self._sums.clear()
            self._sums[key] += amount
            return self._sums[key]


@dataclass
class WrongKeys:
    """Addresses that presented too many keys that are none. They are not listened to until the minute is over."""

    counter: Counter
    limit: int
    _blocked: dict[str, int] = field(default_factory=dict)

    def check(self, address: str) -> None:
        """Refuse a blocked address.

        Raises:
            RateLimited: Until the minute is over.
        """
        if self._blocked.get(address) == this_minute():
            raise too_many("too many wrong API keys from this address")

    def note(self, address: str) -> None:
        """Count a wrong key."""
        if self.counter.add(f"wrong-keys:{address}", 1) >= self.limit:
            minute = this_minute()
            self._blocked = {known: at for known, at in self._blocked.items() if at == minute} | {address: minute}


@dataclass(frozen=True)
class Rate:
    """How much of a limit is used in this minute."""

    unit: Literal["requests", "tokens"]
    limit: int
    used: int

    def headers(self) -> dict[str, str]:
        """What OpenAI's clients look for."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(max(0, self.limit - self.used)),
            f"x-ratelimit-reset-{self.unit}": f"{seconds_left()}s",
        }

    def check(self) -> None:
        """Refuse what is beyond the limit.

        Raises:
            RateLimited: Until the minute is over.
        """
        if self.used > self.limit:
            raise too_many(f"more than {self.limit} {self.unit} a minute", self.headers())


def too_many(message: str, headers: dict[str, str] | None = None) -> RateLimited:
    """The refusal, to be tried again when the minute is over."""
    return RateLimited(message, headers={**(headers or {}), "Retry-After": str(seconds_left())})


def this_minute() -> int:
    """The number of the current minute."""
    return int(time.time()) // MINUTE


def seconds_left() -> int:
    """Until the next minute, at least 1."""
    return MINUTE - int(time.time()) % MINUTE
