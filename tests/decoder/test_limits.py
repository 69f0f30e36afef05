"""The decoder keeps to tenants' limits: requests and tokens a minute, and wrong keys from one address."""

from __future__ import annotations

import pytest

from armature.contracts.serving import ServedTenant
from armature.contracts.tenants import TenantLimits
from armature.errors import QuotaExceeded, RateLimited
from armature.http.rates import Clock, LocalCounter
from armature_decoder.limits.token_quota import TenantQuotas


class Minutes(Clock):
    """A clock that stands still."""

    def __init__(self, minute: int = 1) -> None:
        super().__init__(lambda: 60.0 * self.current + 15)
        self.current = minute


@pytest.fixture
def minutes() -> Minutes:
    return Minutes()


@pytest.fixture
def counter(minutes: Minutes) -> LocalCounter:
    return LocalCounter(minutes)


def tenant(**limits: int) -> ServedTenant:
    return ServedTenant(id="ten_a", name="a", limits=TenantLimits(**limits), keys=[], models=[])


def test_reserved_tokens_that_are_not_used_are_given_back(counter: LocalCounter) -> None:
    quotas, limited = TenantQuotas(counter), tenant(tokens_per_minute=100)
    first = quotas.reserve(limited, 60)
    assert first.headers()["x-ratelimit-remaining-tokens"] == "40"
    with pytest.raises(RateLimited) as refused:
        quotas.reserve(limited, 50)
    assert refused.value.headers["x-ratelimit-limit-tokens"] == "100"
    assert refused.value.headers["Retry-After"] == "45"
    first.settle(10)
    second = quotas.reserve(limited, 90)
    assert second.headers()["x-ratelimit-remaining-tokens"] == "0"
    second.settle(0)
    assert counter.add("tokens:ten_a", 0) == 10


def test_a_reservation_of_an_earlier_minute_gives_nothing_back(counter: LocalCounter, minutes: Minutes) -> None:
    reservation = TenantQuotas(counter).reserve(tenant(tokens_per_minute=100), 100)
    minutes.current = 2
    reservation.settle(0)
    assert counter.add("tokens:ten_a", 0) == 0


def test_a_request_beyond_a_whole_minute_exceeds_the_quota(counter: LocalCounter) -> None:
    with pytest.raises(QuotaExceeded):
        TenantQuotas(counter).reserve(tenant(tokens_per_minute=100), 101)


def test_a_tenant_without_limits_is_not_counted() -> None:
    counter = LocalCounter()
    quotas = TenantQuotas(counter)
    assert quotas.count_request(tenant()) is None
    reservation = quotas.reserve(tenant(), 10**9)
    reservation.settle(5)
    assert reservation.headers() == {}
    assert counter._sums == {}
