"""The decoder keeps to tenants' limits: requests and tokens a minute, and wrong keys from one address."""

from __future__ import annotations

import pytest

from armature.contracts.serving import ServedTenant
from armature.contracts.tenants import TenantLimits
from armature.errors import QuotaExceeded, RateLimited
from armature.http import rates
from armature.http.rates import LocalCounter
from armature_decoder.limits import token_quota as budgets
from armature_decoder.limits.token_quota import TenantBudgets


@pytest.fixture
def minute(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The current minute, to be changed by the test."""
    now = [1]
    for module in (rates, budgets):
        monkeypatch.setattr(module, "this_minute", lambda: now[0])
    return now


def tenant(**limits: int) -> ServedTenant:
    return ServedTenant(id="ten_a", name="a", limits=TenantLimits(**limits), keys=[], models=[])


def test_tokens_are_set_aside_and_given_back(minute: list[int]) -> None:
    counter = LocalCounter()
    shares, limited = TenantBudgets(counter), tenant(tokens_per_minute=100)
    first = shares.set_aside(limited, 60)
    assert first.headers()["x-ratelimit-remaining-tokens"] == "40"
    with pytest.raises(RateLimited) as refused:
        shares.set_aside(limited, 50)
    assert refused.value.headers["x-ratelimit-limit-tokens"] == "100"
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    first.settle(10)
    second = shares.set_aside(limited, 90)
    assert second.headers()["x-ratelimit-remaining-tokens"] == "0"
    second.settle(0)
    assert counter.add("tokens:ten_a", 0) == 10


def test_what_was_taken_from_an_earlier_minute_is_not_given_to_this_one(minute: list[int]) -> None:
    counter = LocalCounter()
    share = TenantBudgets(counter).set_aside(tenant(tokens_per_minute=100), 100)
    minute[0] = 2
    share.settle(0)
    assert counter.add("tokens:ten_a", 0) == 0


def test_a_request_beyond_a_whole_minute_is_no_matter_of_waiting(minute: list[int]) -> None:
    with pytest.raises(QuotaExceeded):
        TenantBudgets(LocalCounter()).set_aside(tenant(tokens_per_minute=100), 101)


def test_without_a_limit_nothing_is_counted() -> None:
    counter = LocalCounter()
    shares = TenantBudgets(counter)
    assert shares.count_request(tenant()) is None
    share = shares.set_aside(tenant(), 10**9)
    share.settle(5)
    assert share.headers() == {}
    assert counter._sums == {}
