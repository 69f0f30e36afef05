"""API keys: listing, rotation with an overlap, and the record of their last use."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select, update

from armature.contracts.tenants import TENANT_SCOPES, parse_key
from armature.db.models import ApiKey
from armature_api.relay.serving_snapshot import build_snapshot
from tests.support.api import Api, Key, error_of


def key_id(key: Key) -> str:
    parsed = parse_key(key.token)
    assert parsed is not None
    return parsed[0]


def stored(api: Api, id: str) -> ApiKey:
    with api.resources.readers() as session:
        return session.get_one(ApiKey, id)


def rotate(api: Api, key: Key, **body: Any) -> Key:
    answer = api.platform.post(f"/v1/keys/{key_id(key)}/rotate", body)
    assert answer.status_code == 201, answer.text
    return Key(api.client, key.tenant_id, answer.json()["token"])


def test_a_key_gets_no_harmful_scope_by_default(api: Api) -> None:
    created = api.platform.post(f"/v1/tenants/{api.platform.tenant_id}/keys", {}).json()
    assert set(created["scopes"]) == set(TENANT_SCOPES)
    assert not {scope for scope in created["scopes"] if scope.startswith(("harmful", "audit", "platform"))}


def test_keys_are_listed_without_their_secrets(any_api: Api) -> None:
    key = any_api.tenant("acme")
    again = any_api.key(key.tenant_id, "generate")
    any_api.platform.request("DELETE", f"/v1/keys/{key_id(key)}")
    path = f"/v1/tenants/{key.tenant_id}/keys"
    first = any_api.platform.get(path, params={"limit": 1}).json()
    second = any_api.platform.get(path, params={"limit": 1, "after": first["last_id"]}).json()
    assert [first["data"][0]["id"], second["data"][0]["id"]] == [key_id(again), key_id(key)]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert second["data"][0]["revoked_at"] is not None
    for answer in (first, second):
        assert "token" not in str(answer)
        assert "sha256" not in str(answer)
    foreign = any_api.platform.get(path, params={"after": key_id(any_api.platform)})
    assert error_of(foreign, 400)["code"] == "invalid_cursor"
    assert error_of(any_api.platform.get("/v1/tenants/ten_none/keys"), 404)["code"] == "not_found"


def test_a_rotated_key_overlaps_with_its_successor(any_api: Api) -> None:
    old = any_api.tenant("acme", "jobs:read", "generate")
    new = rotate(any_api, old, overlap_seconds=60)
    assert [key.get("/v1/jobs").status_code for key in (old, new)] == [200, 200]
    before, after = stored(any_api, key_id(old)), stored(any_api, key_id(new))
    assert (after.name, after.scopes, after.expires_at) == (before.name, before.scopes, None)
    assert before.expires_at is not None
    assert 0 < before.expires_at - time.time() <= 61
    with any_api.resources.writers.begin() as session:  # time passes
        session.execute(update(ApiKey).where(ApiKey.id == before.id).values(expires_at=time.time() - 1))
    assert [key.get("/v1/jobs").status_code for key in (old, new)] == [401, 200]
    with any_api.resources.readers() as session:
        served = [key.id for tenant in build_snapshot(session).tenants for key in tenant.keys]
    assert after.id in served
    assert before.id not in served


def test_a_rotation_prolongs_nothing(api: Api) -> None:
    soon = int(time.time()) + 100
    created = api.platform.post(f"/v1/tenants/{api.platform.tenant_id}/keys", {"expires_at": soon}).json()
    old = Key(api.client, api.platform.tenant_id, created["token"])
    new = rotate(api, old, overlap_seconds=86_400)
    assert stored(api, key_id(old)).expires_at == stored(api, key_id(new)).expires_at == soon
    at_once = rotate(api, new, overlap_seconds=0)
    assert [key.get("/v1/jobs").status_code for key in (new, at_once)] == [401, 200]


def test_bad_rotations_are_refused(api: Api) -> None:
    key = api.tenant("acme")
    path = f"/v1/keys/{key_id(key)}/rotate"
    for body in ({"overlap_seconds": -1}, {"overlap_seconds": 31 * 86_400}, {"overlap_seconds": "60"}):
        assert error_of(api.platform.post(path, body), 422)["param"] == "overlap_seconds"
    api.platform.request("DELETE", f"/v1/keys/{key_id(key)}")
    assert error_of(api.platform.post(path, {}), 409)["code"] == "conflict"
    assert error_of(api.platform.post("/v1/keys/0000/rotate", {}), 404)["code"] == "not_found"


def test_the_last_use_is_recorded_to_the_minute(any_api: Api) -> None:
    key = any_api.tenant("acme")
    assert stored(any_api, key_id(key)).last_used_at is None
    key.get("/v1/jobs")
    first = stored(any_api, key_id(key)).last_used_at
    assert first is not None
    key.get("/v1/jobs")
    assert stored(any_api, key_id(key)).last_used_at == first
    with any_api.resources.writers.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.id == key_id(key)).values(last_used_at=first - 61))
    key.get("/v1/jobs")
    assert (stored(any_api, key_id(key)).last_used_at or 0) >= first
    listed = any_api.platform.get(f"/v1/tenants/{key.tenant_id}/keys").json()["data"]
    assert listed[0]["last_used_at"] >= int(first)


def test_recording_the_last_use_delays_no_request(api: Api) -> None:
    key = api.tenant("acme")
    with api.resources.last_use.busy:  # another write is in progress
        assert key.get("/v1/jobs").status_code == 200
    with api.resources.readers() as session:
        assert session.scalars(select(ApiKey.last_used_at).where(ApiKey.id == key_id(key))).one() is None
