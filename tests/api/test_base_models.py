"""Base models: names of checkpoints, aliases, and sharing between tenants."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from armature.contracts.base import digest
from armature.contracts.jobs import TERMINAL_STATES
from armature.db.models import Job
from tests.support.api import Api, checkpoint, error_of, task_vector

ALIAS = "/v1/base_model_aliases/best"


def test_a_version_keeps_the_model_that_an_alias_named(any_api: Api) -> None:
    key = any_api.tenant("acme")
    first, second = (any_api.base_model(key.tenant_id, name)[0] for name in ("one", "two"))
    key.post("/v1/profiles", {"name": "care"})
    assert key.request("PUT", ALIAS, json={"base_model": first}).json()["base_model"] == first
    for reference in ("best", "one", first):
        version = key.post("/v1/profiles/care/versions", {"base_model": reference})
        assert version.json()["base_model"] == first, version.text
    moved = key.request("PUT", ALIAS, json={"base_model": second, "if_base_model": second})
    assert error_of(moved, 409)["code"] == "version_conflict"
    assert key.request("PUT", ALIAS, json={"base_model": second, "if_base_model": first}).status_code == 200
    assert key.post("/v1/profiles/care/versions", {"base_model": "best"}).json()["base_model"] == second
    assert [item["base_model"] for item in key.get("/v1/base_model_aliases").json()["data"]] == [second]
    assert key.get("/v1/profiles/care/versions/1").json()["base_model"] == first
    taken = key.request("PUT", "/v1/base_model_aliases/one", json={"base_model": second})
    assert error_of(taken, 409)["code"] == "name_taken"
    other = any_api.tenant("bolt")
    error_of(other.request("PUT", ALIAS, json={"base_model": first}), 404)
    other.post("/v1/profiles", {"name": "care"})
    for reference in ("best", "one", first):
        error_of(other.post("/v1/profiles/care/versions", {"base_model": reference}), 404)


def test_a_checkpoint_that_a_job_made_becomes_a_base_model(any_api: Api) -> None:
    key = any_api.tenant("acme")
    made = any_api.publish(key.tenant_id, checkpoint("edited"))
    key.request("PATCH", f"/v1/artifacts/{made.id}", json={"expires_at": 4_102_444_800})
    created = key.post("/v1/base_models", {"name": "safe", "artifact": made.id})
    assert created.status_code == 201, created.text
    model = created.json()
    assert (model["name"], model["artifact_id"], model["shared"]) == ("safe", made.id, False)
    assert model["model_digest"] == digest("edited")
    assert key.get(f"/v1/base_models/{model['id']}").json() == model
    assert key.get(f"/v1/artifacts/{made.id}").json()["expires_at"] is None
    assert "base model safe" in error_of(key.request("DELETE", f"/v1/artifacts/{made.id}"), 409)["message"]
    key.post("/v1/profiles", {"name": "care"})
    version = key.post("/v1/profiles/care/versions", {"base_model": "safe"})
    assert version.json()["base_model"] == model["id"], version.text


def test_a_base_model_needs_an_own_checkpoint_and_a_free_name(any_api: Api) -> None:
    key = any_api.tenant("acme")
    model, made = any_api.base_model(key.tenant_id, "one")
    key.request("PUT", ALIAS, json={"base_model": model})
    foreign = any_api.publish(any_api.tenant("bolt").tenant_id, checkpoint("secret")).id
    shared = any_api.publish(any_api.platform.tenant_id, checkpoint("common"), shared=True).id
    vector = any_api.publish(key.tenant_id, task_vector("one")).id
    for name, artifact, status, code, param in (
        ("new", foreign, 404, "not_found", "artifact"),
        ("new", "art_nothing", 404, "not_found", "artifact"),
        ("new", vector, 422, "wrong_kind", "artifact"),
        ("new", shared, 403, "not_yours", "artifact"),
        ("one", made.id, 409, "name_taken", "name"),
        ("best", made.id, 409, "name_taken", "name"),
        ("../x", made.id, 422, "invalid_request", "name"),
    ):
        error = error_of(key.post("/v1/base_models", {"name": name, "artifact": artifact}), status)
        assert (error["code"], error["param"]) == (code, param), (name, artifact)
    assert [item["name"] for item in key.get("/v1/base_models").json()["data"]] == ["one"]
    again = any_api.publish(any_api.platform.tenant_id, checkpoint("open"), shared=True).id
    assert any_api.platform.post("/v1/base_models", {"name": "open", "artifact": again}).json()["shared"]
    assert [item["name"] for item in key.get("/v1/base_models").json()["data"]] == ["open", "one"]


def test_a_base_model_in_use_is_not_deleted(any_api: Api) -> None:
    key = any_api.tenant("acme")
    model, _ = any_api.base_model(key.tenant_id, "one")
    path = f"/v1/base_models/{model}"
    key.request("PUT", ALIAS, json={"base_model": model})
    assert "alias best" in error_of(key.request("DELETE", path), 409)["message"]
    lexicon = key.dataset("lexicon", [{"attributes": {"empathy": ["kind"]}, "harmful": [], "refusals": []}])
    spec = {"kind": "evaluation.run", "base_model": "best", "lexicon": lexicon, "attributes": ["empathy"]}
    spec["prompts"] = key.dataset("prompt", [{"prompt": "hello"}])
    job = key.post("/v1/jobs", {"spec": spec}).json()["id"]
    assert key.request("DELETE", ALIAS).status_code == 204
    error_of(key.request("DELETE", ALIAS), 404)
    assert "unfinished job" in error_of(key.request("DELETE", path), 409)["message"]
    key.post(f"/v1/jobs/{job}/cancel")
    key.post("/v1/profiles", {"name": "care"})
    key.post("/v1/profiles/care/versions", {"base_model": model})
    assert "profile" in error_of(key.request("DELETE", path), 409)["message"]
    unused, _ = any_api.base_model(key.tenant_id, "two")
    assert key.request("DELETE", f"/v1/base_models/{unused}").status_code == 204
    error_of(key.get(f"/v1/base_models/{unused}"), 404)
    shared, _ = any_api.base_model(any_api.platform.tenant_id, "three", shared=True)
    assert error_of(key.request("DELETE", f"/v1/base_models/{shared}"), 403)["code"] == "not_yours"
    with any_api.resources.readers() as session:
        assert session.scalars(select(Job.id).where(Job.state.not_in(TERMINAL_STATES))).all() == []


@pytest.mark.parametrize("reference", ["", "a" * 65, "../x", "a\u0000b", "mdl_", "ONE"])
def test_unknown_references_are_refused(api: Api, reference: str) -> None:
    key = api.tenant("acme")
    api.base_model(key.tenant_id, "one")
    key.post("/v1/profiles", {"name": "care"})
    answer = key.post("/v1/profiles/care/versions", {"base_model": reference})
    assert answer.status_code in (400, 404, 422)


def test_a_shared_result_is_readable_by_other_tenants(api: Api) -> None:
    stranger = api.tenant("stranger")
    model, artifact = api.base_model(api.platform.tenant_id, "shared-base", shared=True)
    assert stranger.get(f"/v1/base_models/{model}").json()["shared"] is True
    seen = stranger.get(f"/v1/artifacts/{artifact.id}").json()
    assert seen["job_id"] is None
    assert api.platform.get(f"/v1/artifacts/{artifact.id}").json()["job_id"] == artifact.job_id
    assert stranger.get(f"/v1/artifacts/{artifact.id}/files/config.json").status_code == 200
    assert [model["name"] for model in stranger.get("/v1/base_models").json()["data"]] == ["shared-base"]
    assert stranger.get(f"/v1/jobs/{artifact.job_id}").status_code == 404
