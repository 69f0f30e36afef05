"""Submitting jobs: resolved inputs, refusals, and the outbox with and without a broker."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery
from sqlalchemy import select

from armature.contracts.jobs import JobCreateRequest, WaitingFor
from armature.contracts.specs import SPECS, parse_inputs
from armature.db import jobs
from armature.db.models import Job
from armature.queue import TASK_NAME
from armature.settings import DatabaseSettings, RedisSettings
from armature_api.jobs.examples import JOB_EXAMPLES
from tests.support.api import Api, Key, adapter, checkpoint, error_of, metrics, run_api, task_vector
from tests.support.servers import RedisServer

PAIR = {"prompt": "a", "completion": "b"}
PREFERENCE = {"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": 1}}


def harm_spec(api: Api, key: Key, **more: Any) -> dict[str, Any]:
    model, _ = api.base_model(key.tenant_id)
    pairs = key.dataset("prompt_completion", [PAIR])
    return {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": pairs, **more}


def stored(api: Api) -> list[Job]:
    with api.resources.readers() as session:
        return list(session.scalars(select(Job).where(Job.kind != "test.work")))


def test_a_job_is_accepted_with_its_inputs_resolved(any_api: Api) -> None:
    key = any_api.tenant("acme")
    spec = harm_spec(any_api, key, seed=2**62)
    answer = key.post("/v1/jobs", {"spec": spec, "metadata": {"ticket": "A-12"}})
    assert answer.status_code == 202
    view = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{view['id']}"
    assert (view["state"], view["attempt"], view["artifacts"], view["error"]) == ("queued", 0, [], None)
    assert view["metadata"] == {"ticket": "A-12"}
    assert view["spec"]["scale"] == 1.5  # the stored spec has the defaults
    assert key.get(answer.headers["location"]).json() == view
    (job,) = stored(any_api)
    inputs = parse_inputs(job.inputs)
    assert {parent["role"]: parent["digest"] for parent in view["parents"]} == {
        "base_model": inputs["base_model"].ref.digest,  # type: ignore[union-attr]
        "harmful_pairs": inputs["harmful_pairs"].sha256,  # type: ignore[union-attr]
    }
    store = any_api.resources.store
    assert store.head(inputs["base_model"].ref.manifest_key)  # type: ignore[union-attr]
    assert store.get_bytes(inputs["harmful_pairs"].key) == b'{"prompt": "a", "completion": "b"}\n'  # type: ignore[union-attr]
    assert (job.queue, job.max_attempts, job.request_id) == ("gpu", 3, answer.headers["x-request-id"])


def test_a_finished_job_shows_its_artifacts(api: Api) -> None:
    artifact = api.publish(api.platform.tenant_id, checkpoint(), register_as="base")
    view = api.platform.get(f"/v1/jobs/{artifact.job_id}").json()
    assert view["state"] == "succeeded"
    assert [(item["id"], item["name"]) for item in view["artifacts"]] == [(artifact.id, "checkpoint")]
    assert view["base_model_id"] == api.platform.get("/v1/base_models").json()["data"][0]["id"]


# --- references -------------------------------------------------------------------------------------------------------


def test_references_must_name_what_the_field_needs(api: Api) -> None:
    key = api.tenant("acme")
    spec = harm_spec(api, key)
    lexicon = key.dataset("lexicon", [{"attributes": {"empathy": ["i see"]}}])
    cases = [
        ({**spec, "harmful_pairs": lexicon}, 422, "wrong_kind", "spec.harmful_pairs"),
        ({**spec, "harmful_pairs": "ds_" + "0" * 28}, 404, "not_found", "spec.harmful_pairs"),
        ({**spec, "harmful_pairs": spec["base_model"]}, 404, "not_found", "spec.harmful_pairs"),
        ({**spec, "base_model": "../x"}, 404, "not_found", "spec.base_model"),
    ]
    arm = {"kind": "arm.train", "base_model": spec["base_model"], "pairs": key.dataset("preference", [PREFERENCE])}
    arm["attributes"] = ["empathy"]
    checkpoint_id = key.get("/v1/artifacts").json()["data"][0]["id"]
    cases.append(({**arm, "harm_vector": checkpoint_id}, 422, "wrong_kind", "spec.harm_vector"))
    for case, status, code, param in cases:
        error = error_of(key.post("/v1/jobs", {"spec": case}), status)
        assert (error["code"], error["param"]) == (code, param)
    assert stored(api) == []


def test_uploaded_model_files_are_named_one_by_one(api: Api) -> None:
    key = api.tenant("acme")
    good = key.upload(b"{}", "model", "config.json").json()["id"]
    rows = key.upload(b"{}").json()["id"]
    spec = {"kind": "base_model.import", "name": "mine"}
    answer = key.post("/v1/jobs", {"spec": {**spec, "source": {"type": "files", "files": {"config.json": good}}}})
    assert answer.status_code == 202
    assert stored(api)[0].queue == "cpu"
    assert list(stored(api)[0].inputs) == ["files/config.json"]
    bad = {**spec, "source": {"type": "files", "files": {"config.json": rows}}}
    error = error_of(key.post("/v1/jobs", {"spec": bad}), 422)
    assert (error["code"], error["param"]) == ("wrong_kind", "spec.source.files.config.json")
    traversal = {**spec, "source": {"type": "files", "files": {"../x": good}}}
    assert error_of(key.post("/v1/jobs", {"spec": traversal}), 422)["param"].startswith("spec.source.files")


def test_an_import_under_a_taken_name_is_refused(any_api: Api) -> None:
    key, other = any_api.tenant("acme"), any_api.tenant("bolt")
    model, _ = any_api.base_model(key.tenant_id, "mine")
    assert key.request("PUT", "/v1/base_model_aliases/best", json={"base_model": model}).status_code == 200

    def submit(owner: Key, name: str) -> Any:
        files = {"config.json": owner.upload(b"{}", "model", "config.json").json()["id"]}
        spec = {"kind": "base_model.import", "name": name, "source": {"type": "files", "files": files}}
        return owner.post("/v1/jobs", {"spec": spec})

    for name in ("mine", "best"):
        error = error_of(submit(key, name), 409)
        assert (error["code"], error["param"]) == ("name_taken", "spec.name")
    assert stored(any_api) == []
    cancelled = submit(key, "new").json()["id"]
    key.post(f"/v1/jobs/{cancelled}/cancel")
    any_api.base_model(key.tenant_id, "new")
    assert error_of(key.post(f"/v1/jobs/{cancelled}/retry"), 409)["param"] == "spec.name"
    assert submit(other, "mine").status_code == 202  # names are a tenant's own
    assert key.request("DELETE", "/v1/base_model_aliases/best").status_code == 204
    assert submit(key, "best").status_code == 202


def test_server_side_sources_and_sharing_need_platform(api: Api) -> None:
    tenant = api.tenant("acme")
    spec = {"kind": "base_model.import", "name": "mine"}
    folder = {**spec, "source": {"type": "folder", "path": "/models/x"}}
    hub = {**spec, "source": {"type": "hub", "repo_id": "org/name"}}
    shared = {"spec": harm_spec(api, tenant), "shared": True}
    for body, param in (({"spec": folder}, "spec.source"), ({"spec": hub}, "spec.source"), (shared, "shared")):
        error = error_of(tenant.post("/v1/jobs", body), 403)
        assert (error["code"], error["param"]) == ("missing_scope", param)
    assert stored(api) == []
    assert api.platform.post("/v1/jobs", {"spec": folder, "shared": True}).json()["shared"] is True


def test_parts_that_were_not_made_for_each_other_are_refused(api: Api) -> None:
    key = api.tenant("acme")
    model, _ = api.base_model(key.tenant_id)
    vector = api.publish(key.tenant_id, task_vector())
    foreign_vector = api.publish(key.tenant_id, task_vector("another base"))
    arms = {
        "fits": adapter(harm_vector=vector.digest, harm_scale=1.5),
        "other base": adapter("another base", harm_vector=vector.digest, harm_scale=1.5),
        "other tokenizer": adapter(tokenizer="another", harm_vector=vector.digest, harm_scale=1.5),
        "other vector": adapter(harm_vector=foreign_vector.digest, harm_scale=1.5),
        "other scale": adapter(harm_vector=vector.digest, harm_scale=1.0),
        "plain base": adapter(),
    }
    ids = {name: api.publish(key.tenant_id, metadata).id for name, metadata in arms.items()}
    spec = {
        "kind": "evaluation.run",
        "base_model": model,
        "harm_vector": vector.id,
        "lexicon": key.dataset("lexicon", [{"attributes": {"empathy": ["i see"], "wit": ["ha"]}}]),
        "prompts": key.dataset("prompt", [{"prompt": "hello"}]),
        "attributes": ["empathy"],
    }
    outcomes = {}
    for name, id in ids.items():
        answer = key.post("/v1/jobs", {"spec": {**spec, "arm": id}})
        outcomes[name] = "ok" if answer.status_code == 202 else error_of(answer, 409)["code"]
    assert outcomes == {
        "fits": "ok",
        "other base": "adapter_base_mismatch",
        "other tokenizer": "tokenizer_mismatch",
        "other vector": "adapter_base_mismatch",
        "other scale": "adapter_base_mismatch",
        "plain base": "adapter_base_mismatch",
    }
    plain = {key: value for key, value in spec.items() if key != "harm_vector"}
    assert key.post("/v1/jobs", {"spec": {**plain, "arm": ids["plain base"]}}).status_code == 202
    error = error_of(key.post("/v1/jobs", {"spec": {**spec, "harm_vector": foreign_vector.id}}), 409)
    assert (error["code"], error["param"]) == ("adapter_base_mismatch", "spec.harm_vector")
    unknown = {**spec, "arm": ids["fits"], "attributes": ["empathy", "wit"]}
    error = error_of(key.post("/v1/jobs", {"spec": unknown}), 422)
    assert (error["code"], error["param"]) == ("unknown_attribute", "spec.attributes")
    export = {"kind": "arm.export", "arm": ids["fits"], "preference": {"wit": 1.0}}
    error = error_of(key.post("/v1/jobs", {"spec": export}), 422)
    assert (error["code"], error["param"]) == ("unknown_attribute", "spec.preference")
    extend = {
        "kind": "arm.extend",
        "base_model": model,
        "harm_vector": vector.id,
        "arm": ids["fits"],
        "attribute": "empathy",
        "pairs": key.dataset("preference", [{"prompt": "p", "responses": ["a", "b"], "labels": {"empathy": 0}}]),
    }
    error = error_of(key.post("/v1/jobs", {"spec": extend}), 422)
    assert (error["message"], error["param"]) == ("the ARM knows empathy already", "spec.attribute")
    error = error_of(key.post("/v1/jobs", {"spec": {**export, "preference": {"empathy": 0.0}}}), 422)
    assert (error["code"], error["param"]) == ("zero_preference", "spec.preference")
    error = error_of(key.post("/v1/jobs", {"spec": {**extend, "attribute": "wit"}}), 422)
    assert (error["code"], error["param"]) == ("invalid_dataset", "spec.attribute")


# --- the outbox -------------------------------------------------------------------------------------------------------


def test_without_a_broker_jobs_are_accepted_at_once_and_wait(api: Api) -> None:
    key = api.tenant("acme")
    spec = harm_spec(api, key)
    started = time.monotonic()
    for seed in range(5):
        assert key.post("/v1/jobs", {"spec": {**spec, "seed": seed}}).status_code == 202
    assert time.monotonic() - started < 5
    assert [job.dispatched_at for job in stored(api)] == [None] * 5
    scraped = metrics(api.client)
    assert "armature_outbox_pending 5.0" in scraped
    assert 'armature_jobs{state="queued"} 5.0' in scraped


def test_with_a_broker_the_message_is_sent_right_after_the_commit(
    sqlite_settings: DatabaseSettings, tmp_path: Any, valkey_server: RedisServer
) -> None:
    with run_api(sqlite_settings, tmp_path, RedisSettings(url=valkey_server.url)) as api:
        job_id = api.platform.post("/v1/jobs", {"spec": harm_spec(api, api.platform)}).json()["id"]
        (job,) = stored(api)
        assert job.dispatched_at is not None
        assert received(api.resources.celery, "gpu") == [[job_id]]


def received(celery: Celery, queue: str) -> list[Any]:
    """Take the messages of a queue and return their arguments."""
    arguments = []
    with celery.connection_for_read() as connection:
        while (message := connection.default_channel.basic_get(queue)) is not None:
            assert message.headers["task"] == TASK_NAME
            arguments.append(message.decode()[0])
            message.ack()
    return arguments


def test_there_is_a_valid_example_of_each_kind(api: Api) -> None:
    assert set(JOB_EXAMPLES) == set(SPECS)
    for example in JOB_EXAMPLES.values():
        JobCreateRequest.model_validate(example["value"])
    body = api.client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]
    assert set(body["content"]["application/json"]["examples"]) == set(SPECS)


def test_a_job_shows_what_it_waits_for(any_api: Api) -> None:
    key = any_api.tenant("acme")
    body = {"spec": harm_spec(any_api, key)}
    job = key.post("/v1/jobs", body).json()
    assert job["waiting_for"] is None
    wait = WaitingFor(reason="memory", needs_bytes=9 << 30, free_bytes=5 << 30, remedy="lower training.batch_size")
    with any_api.resources.writers.begin() as session:
        assert jobs.defer(session, job["id"], 30.0, wait)
    assert key.get(f"/v1/jobs/{job['id']}").json()["waiting_for"] == wait.model_dump()
    assert key.get("/v1/jobs").json()["data"][0]["waiting_for"] == wait.model_dump()
    assert key.post(f"/v1/jobs/{job['id']}/cancel").json()["waiting_for"] is None
