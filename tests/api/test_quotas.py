"""Limits: all processes together refuse what exceeds them, and idle counters expire."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import update

from armature.db.models import Job
from armature.settings import DatabaseSettings, RedisSettings
from armature_api.app import create_app
from tests.support.api import Api, Key, error_of, run_api
from tests.support.servers import RedisServer

SPEC = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}


def limited(api: Api, **limits: int) -> Key:
    """Create a tenant with limits and a key that may import from the hub."""
    key = api.tenant("acme", "data:write", "jobs:read", "jobs:write", "platform")
    answer = api.platform.request("PUT", f"/v1/tenants/{key.tenant_id}/limits", json=limits)
    assert answer.status_code == 200, answer.text
    return key


def usage(api: Api, key: Key) -> dict[str, int]:
    return api.platform.get(f"/v1/tenants/{key.tenant_id}").json()["usage"]


def submit(key: Key, **arguments: Any) -> Any:
    return key.post("/v1/jobs", {"spec": SPEC}, **arguments)


def test_limits_are_shown_and_replaced_as_a_whole(any_api: Api) -> None:
    key = limited(any_api, queued_jobs=3, requests_per_minute=100)
    shown = any_api.platform.get(f"/v1/tenants/{key.tenant_id}").json()
    assert shown["limits"]["queued_jobs"] == 3
    assert shown["limits"]["tokens_per_minute"] is None
    again = any_api.platform.request("PUT", f"/v1/tenants/{key.tenant_id}/limits", json={"running_jobs": 1}).json()
    assert (again["limits"]["queued_jobs"], again["limits"]["running_jobs"]) == (None, 1)
    created = any_api.platform.post("/v1/tenants", {"name": "born-limited", "limits": {"stored_bytes": 5}}).json()
    assert created["limits"]["stored_bytes"] == 5


@pytest.mark.parametrize("body", [{"queued_jobs": -1}, {"queued_jobs": "3"}, {"queued": 3}, {"queued_jobs": 2**53}])
def test_bad_limits_are_refused(api: Api, body: dict[str, object]) -> None:
    path = f"/v1/tenants/{api.platform.tenant_id}/limits"
    assert error_of(api.platform.request("PUT", path, json=body), 422)["param"] in body
    assert error_of(api.platform.request("PUT", "/v1/tenants/ten_none/limits", json={}), 404)["code"] == "not_found"


def test_queued_jobs_are_limited(any_api: Api) -> None:
    key = limited(any_api, queued_jobs=5)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: submit(key), range(12)))
    assert sorted(answer.status_code for answer in answers) == [202] * 5 + [403] * 7
    assert error_of(submit(key), 403) | {"request_id": None} == {
        "message": "no more than 5 jobs may wait",
        "type": "quota_error",
        "param": None,
        "code": "quota_exceeded",
        "request_id": None,
    }
    assert usage(any_api, key)["queued_jobs"] == 5
    for job in key.get("/v1/jobs").json()["data"]:
        key.post(f"/v1/jobs/{job['id']}/cancel")
    assert usage(any_api, key)["queued_jobs"] == 0
    assert submit(key).status_code == 202


def test_a_repeated_request_is_no_new_job(api: Api) -> None:
    key = limited(api, queued_jobs=1)
    headers = {"Idempotency-Key": "once"}
    assert [submit(key, headers=headers).status_code for _ in range(3)] == [202] * 3


@pytest.mark.bad_input(61)
def test_submissions_are_rate_limited(any_api: Api) -> None:
    key = limited(any_api, job_submissions_per_minute=2)
    assert [submit(key).status_code for _ in range(2)] == [202] * 2
    refused = submit(key)
    assert error_of(refused, 429)["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    with any_api.resources.writers.begin() as session:  # a minute passes
        session.execute(update(Job).values(created_at=Job.created_at - 61))
    assert usage(any_api, key)["job_submissions_per_minute"] == 0
    assert submit(key).status_code == 202


def test_stored_bytes_are_limited(any_api: Api) -> None:
    key = limited(any_api, stored_bytes=100)
    row = b'{"prompt": "' + b"x" * 50 + b'"}\n'
    assert key.upload(row).status_code == 201
    assert usage(any_api, key)["stored_bytes"] == len(row)
    assert error_of(key.upload(row * 2), 403)["code"] == "quota_exceeded"
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: key.upload(row).status_code, range(4)))
    assert answers == [403] * 4
    assert usage(any_api, key)["stored_bytes"] <= 100


@pytest.mark.bad_input(61)
def test_processes_share_the_count_of_requests(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    redis = RedisSettings(url=valkey_server.url)
    with run_api(sqlite_settings, tmp_path, redis) as api, TestClient(create_app(api.resources.settings)) as other:
        for app in (api.client.app, other.app):
            app.state.resources.counter.clock.now = lambda: 90.0
        key = limited(api, requests_per_minute=6)
        key = api.key(key.tenant_id, "jobs:read")
        elsewhere = Key(other, key.tenant_id, key.token)
        answers = [each.get("/v1/jobs") for _ in range(4) for each in (key, elsewhere)]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == list("54321000")
        assert answers[0].headers["x-ratelimit-limit-requests"] == "6"
        assert answers[-1].headers["x-ratelimit-reset-requests"] == "30s"
        assert answers[-1].headers["retry-after"] == "30"
        assert api.platform.get("/v1/jobs").headers.get("x-ratelimit-limit-requests") is None
        counters = Redis.from_url(valkey_server.url)
        names = list(counters.scan_iter("armature:rate:*"))
        assert names
        assert all(0 < counters.ttl(name) <= 120 for name in names)  # idle counters expire
        counters.close()


def test_without_redis_each_process_counts_for_itself(api: Api) -> None:
    api.resources.counter.clock.now = lambda: 60.0
    platform = limited(api, requests_per_minute=3)
    key = api.key(platform.tenant_id, "jobs:read")
    assert [key.get("/v1/jobs").status_code for _ in range(5)] == [200] * 3 + [429] * 2
    assert [platform.get("/v1/jobs").status_code for _ in range(5)] == [200] * 5  # a key that sets limits is exempt
