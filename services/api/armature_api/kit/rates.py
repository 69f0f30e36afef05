"""Rate counters shared by all API processes in the broker's Redis; each counts alone without it."""

from __future__ import annotations

import time

from redis import Redis
from redis.exceptions import RedisError

from armature.http.rates import MINUTE, Clock, LocalCounter
from armature.logging import get_logger
from armature.settings import RedisSettings

_TIMEOUT_SECONDS = 0.5
_BACK_OFF_SECONDS = 5.0


class SharedCounter:
    """Sums per minute in Redis, where a key lives for two minutes.

    After a failure Redis is skipped for :data:`_BACK_OFF_SECONDS`; requests are then counted in this process.
    """

    def __init__(self, settings: RedisSettings, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._redis = Redis.from_url(
            settings.url.get_secret_value(), socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._local = LocalCounter(self.clock)
        self._retry_at = 0.0

    def add(self, key: str, amount: int) -> int:
        """Add ``amount`` to the key's sum of this minute and return the sum."""
        if time.monotonic() < self._retry_at:
            return self._local.add(key, amount)
        name = f"armature:rate:{self.clock.minute}:{key}"
        try:
            with self._redis.pipeline() as pipeline:
                pipeline.incrby(name, amount)
                pipeline.expire(name, 2 * MINUTE)
                total: int = pipeline.execute()[0]
        except RedisError as error:
            get_logger(__name__).warning("rates counted per process", reason=type(error).__name__)
            self._retry_at = time.monotonic() + _BACK_OFF_SECONDS
            return self._local.add(key, amount)
        return total

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
