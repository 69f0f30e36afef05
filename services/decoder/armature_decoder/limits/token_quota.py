"""Requests and tokens that a tenant may use in a minute. Each decoder process counts for itself."""

from __future__ import annotations

from dataclasses import dataclass

from armature.contracts.serving import ServedTenant
from armature.errors import QuotaExceeded
from armature.http.rates import Counter, Rate


@dataclass(frozen=True)
class Reservation:
    """The most tokens that one request can use, taken from its tenant's quota of one minute.

    ``rate`` is None where the tenant has no limit.
    """

    counter: Counter
    key: str
    amount: int
    minute: int
    rate: Rate | None

    def headers(self) -> dict[str, str]:
        """Return the ``x-ratelimit`` headers on tokens; none without a limit."""
        return self.rate.headers() if self.rate else {}

    def settle(self, used: int) -> None:
        """Give back the tokens that were not used, unless the minute they were taken from is over."""
        if self.rate is not None and self.counter.clock.minute == self.minute:
            self.counter.add(self.key, used - self.amount)


@dataclass(frozen=True)
class TenantQuotas:
    """Requests and tokens of this minute by tenant, counted where the tenant has a limit."""

    counter: Counter

    def count_request(self, tenant: ServedTenant) -> Rate | None:
        """Count one request; return the rate that includes it, None without a limit."""
        limit = tenant.limits.requests_per_minute
        if limit is None:
            return None
        return Rate("requests", limit, self.counter.add(f"requests:{tenant.id}", 1), self.counter.clock)

    def reserve(self, tenant: ServedTenant, tokens: int) -> Reservation:
        """Take the most tokens that a request can use from this minute's quota.

        Raises:
            QuotaExceeded: They are more than a whole minute's.
            RateLimited: They are more than what is left of this minute's; nothing was taken.
        """
        limit, key, minute = tenant.limits.tokens_per_minute, f"tokens:{tenant.id}", self.counter.clock.minute
        if limit is None:
            return Reservation(self.counter, key, tokens, minute, None)
        if tokens > limit:
            raise QuotaExceeded(f"{tokens} tokens are asked for; {limit} a minute are allowed", param="max_tokens")
        rate = Rate("tokens", limit, self.counter.add(key, tokens), self.counter.clock)
        if rate.used > limit:
            self.counter.add(key, -tokens)
        rate.check()
        return Reservation(self.counter, key, tokens, minute, rate)
