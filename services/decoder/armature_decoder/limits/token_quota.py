"""Requests and tokens that a tenant may use in a minute. Each decoder process counts for itself."""

from __future__ import annotations

from dataclasses import dataclass

from armature.contracts.serving import ServedTenant
from armature.errors import QuotaExceeded
from armature.http.rates import Counter, Rate, this_minute


@dataclass(frozen=True)
class Share:
    """Tokens set aside for one request: as many as it may come to use."""

    counter: Counter
    key: str
    amount: int
    minute: int
    rate: Rate | None

    def headers(self) -> dict[str, str]:
        """What the client is told of its tokens; nothing where there is no limit."""
        return self.rate.headers() if self.rate else {}

    def settle(self, used: int) -> None:
        """Give back what was not used, as long as the minute lasts that it was taken from."""
        if self.rate is not None and this_minute() == self.minute:
            self.counter.add(self.key, used - self.amount)


@dataclass(frozen=True)
class TenantBudgets:
    """Counts by tenant, where the tenant has a limit."""

    counter: Counter

    def count_request(self, tenant: ServedTenant) -> Rate | None:
        """One request more; None where there is no limit."""
        limit = tenant.limits.requests_per_minute
        return None if limit is None else Rate("requests", limit, self.counter.add(f"requests:{tenant.id}", 1))

    def set_aside(self, tenant: ServedTenant, tokens: int) -> Share:
        """Take the tokens that a request may come to use from this minute's.

        Raises:
            QuotaExceeded: They are more than a whole minute's.
            RateLimited: They are more than what is left of this minute's; nothing was taken.
        """
        limit, key, minute = tenant.limits.tokens_per_minute, f"tokens:{tenant.id}", this_minute()
        if limit is None:
            return Share(self.counter, key, tokens, minute, None)
        if tokens > limit:
            raise QuotaExceeded(f"{tokens} tokens are asked for; {limit} a minute are allowed", param="max_tokens")
        rate = Rate("tokens", limit, self.counter.add(key, tokens))
        if rate.used > limit:
            self.counter.add(key, -tokens)
        rate.check()
        return Share(self.counter, key, tokens, minute, rate)
