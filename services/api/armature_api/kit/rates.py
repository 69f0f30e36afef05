"""Counters that all API processes share, in the broker's Redis. Without it each process counts for itself."""

from __future__ import annotations

import time

from redis import Redis
from redis.exceptions import RedisError

from armature.http.rates import MINUTE, LocalCounter, this_minute
from armature.logging import get_logger
from armature.settings import RedisSettings

_TIMEOUT = 0.5
_PAUSE = 5.0


class SharedCounter:
    """Counts in Redis, where a key lives for two minutes at most.

    A Redis that does not answer is left alone for some seconds: requests are served, and counted, without it.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._redis = Redis.from_url(
            settings.url.get_secret_value(), socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT
        )
        self._local = LocalCounter()
        self._ask_again_at = 0.0

    def add(self, key: str, amount: int) -> int:
        """Add to the key's sum of this minute; the sum."""
        if time.monotonic() < self._ask_again_at:
            return self._local.add(key, amount)
        name = f"armature:rate:{this_minute()}:{key}"
        try:
            with self._redis.pipeline() as pipeline:
                pipeline.incrby(name, amount)
                pipeline.expire(name, 2 * MINUTE)
                total: int = pipeline.execute()[0]
        except RedisError as error:
            get_logger(__name__).warning("rates are counted by process", reason=type(error).__name__)
            self._ask_again_at = time.monotonic() + _PAUSE
            return self._local.add(key, amount)
        return total

    def close(self) -> None:
        """Give back connections."""
        self._redis.close()
