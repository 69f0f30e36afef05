"""The serving snapshot holds what a decoder needs, no secrets, and changes only when its content does."""

from __future__ import annotations

from sqlalchemy import update

from armature.contracts.serving import SNAPSHOT_KEY, ServingSnapshot
from armature.contracts.tenants import parse_key
from armature.db.models import ApiKey
from armature_api.relay.serving_snapshot import publish_snapshot
from tests.support.api import Api, Key


def publish(api: Api) -> bool:
    with api.resources.readers() as session:
        return publish_snapshot(session, api.resources.store)


def snapshot(api: Api) -> ServingSnapshot:
    return ServingSnapshot.model_validate_json(api.resources.store.get_bytes(SNAPSHOT_KEY))


def served(api: Api) -> dict[str, list[str]]:
    return {tenant.name: [key.id for key in tenant.keys] for tenant in snapshot(api).tenants}


def go_live(api: Api, key: Key) -> None:
    model, _ = api.base_model(key.tenant_id)
    key.post("/v1/profiles", {"name": "care"})
    key.post("/v1/profiles/care/versions", {"base_model": model})
    key.request("PUT", "/v1/profiles/care/aliases/live", json={"version": 1})


def test_the_snapshot_is_written_only_when_it_changed(any_api: Api) -> None:
    assert publish(any_api)
    assert not publish(any_api)
    first = snapshot(any_api)
    key = any_api.tenant("acme")
    assert publish(any_api)
    go_live(any_api, key)
    assert publish(any_api)
    assert not publish(any_api)
    last = snapshot(any_api)
    assert last.installation == first.installation
    assert last.revision > first.revision
    any_api.resources.store.delete(SNAPSHOT_KEY)
    assert publish(any_api)
    assert snapshot(any_api) == last


def test_the_snapshot_names_models_and_key_hashes_by_tenant(any_api: Api) -> None:
    key = any_api.tenant("acme")
    go_live(any_api, key)
    any_api.tenant("no-generate", "jobs:read")
    publish(any_api)
    tenants = {tenant.name: tenant for tenant in snapshot(any_api).tenants}
    assert set(tenants) == {"platform", "acme"}
    assert tenants["platform"].models == []
    (model,) = tenants["acme"].models
    assert (model.profile, model.alias, model.version) == ("care", "live", 1)
    view = key.get("/v1/profiles/care/versions/1").json()
    assert model.manifest.digest() == view["digest"]
    assert parse_key(key.token) in [(served.id, served.secret_sha256) for served in tenants["acme"].keys]
    stored = any_api.resources.store.get_bytes(SNAPSHOT_KEY).decode()
    assert key.token not in stored
    assert key.token[20:] not in stored


def test_revoked_and_expired_keys_leave_the_snapshot(any_api: Api) -> None:
    kept = any_api.tenant("acme")
    revoked, expired = any_api.key(kept.tenant_id), any_api.key(kept.tenant_id)
    publish(any_api)
    assert len(served(any_api)["acme"]) == 3
    any_api.platform.request("DELETE", f"/v1/keys/{revoked.token[3:19]}")
    assert publish(any_api)
    with any_api.resources.writers.begin() as session:  # expiry leaves the revision as it is
        session.execute(update(ApiKey).where(ApiKey.id == expired.token[3:19]).values(expires_at=1.0))
    assert publish(any_api)
    assert served(any_api)["acme"] == [kept.token[3:19]]
