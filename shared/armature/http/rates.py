"""Rate limits per minute: fixed-window counters, refusals, and the headers that report them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from armature.errors import RateLimited

MINUTE = 60


@dataclass
class Clock:
    """The minutes that rates are counted in; ``now`` gives the seconds since the epoch."""

    now: Callable[[], float] = time.time

    @property
    def minute(self) -> int:
        """The number of the current minute since the epoch."""
        return int(self.now()) // MINUTE

    @property
    def seconds_left(self) -> int:
        """The seconds until the next minute, at least 1."""
        return MINUTE - int(self.now()) % MINUTE


class Counter(Protocol):
    """A counter by key whose sums start at zero every minute of its clock."""

    @property
    def clock(self) -> Clock:
        """The clock that its minutes are taken from."""

    def add(self, key: str, amount: int) -> int:
        """Add ``amount`` to the key's sum of this minute and return the sum."""


class LocalCounter:
    """A counter within this process. It holds the current minute only, so its memory stays bounded."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._lock = threading.Lock()
        self._minute = 0
        self._sums: defaultdict[str, int] = defaultdict(int)

    def add(self, key: str, amount: int) -> int:
        """Add ``amount`` to the key's sum of this minute and return the sum."""
        with self._lock:
            if (minute := self.clock.minute) != self._minute:
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
        if self._blocked.get(address) == self.counter.clock.minute:
            raise too_many("too many wrong API keys from this address", self.counter.clock)

    def note(self, address: str) -> None:
        """Count a wrong key of ``address``, and block the address at the limit."""
        if self.counter.add(f"wrong-keys:{address}", 1) >= self.limit:
            minute = self.counter.clock.minute
            self._blocked = {known: at for known, at in self._blocked.items() if at == minute} | {address: minute}


@dataclass(frozen=True)
class Rate:
    """A rate limit and how much of it is used in this minute."""

    unit: Literal["requests", "tokens"]
    limit: int
    used: int
    clock: Clock = field(default_factory=Clock, compare=False)

    def headers(self) -> dict[str, str]:
        """Return the ``x-ratelimit-*`` headers of OpenAI's API."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(max(0, self.limit - self.used)),
            f"x-ratelimit-reset-{self.unit}": f"{self.clock.seconds_left}s",
        }

    def check(self) -> None:
        """Refuse a request beyond the limit.

        Raises:
            RateLimited: More than the limit is used.
        """
        if self.used > self.limit:
            raise too_many(f"more than {self.limit} {self.unit} a minute", self.clock, self.headers())


def too_many(message: str, clock: Clock, headers: dict[str, str] | None = None) -> RateLimited:
    """Build a refusal whose ``Retry-After`` is the end of the minute."""
    return RateLimited(message, headers={**(headers or {}), "Retry-After": str(clock.seconds_left)})
