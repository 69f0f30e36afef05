"""Jobs over HTTP: checks on submission, idempotency, the job's life, lists, and the outbox without a broker."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select

from armature.contracts.base import digest
from armature.contracts.jobs import JobCreateRequest
from armature.contracts.specs import SPECS, parse_inputs
from armature.db import jobs as protocol
from armature.db.models import IdempotencyKey, Job
from armature.db.transitions import Event
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


# --- idempotency ------------------------------------------------------------------------------------------------------


def test_a_repeated_request_gives_the_same_job(any_api: Api) -> None:
    key = any_api.tenant("acme")
    body, headers = {"spec": harm_spec(any_api, key)}, {"Idempotency-Key": "try-1"}
    first = key.post("/v1/jobs", body, headers=headers)
    again = key.post("/v1/jobs", {**body, "metadata": {}}, headers=headers)  # equal after defaults are filled in
    assert "idempotent-replayed" not in first.headers
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert again.headers["location"] == first.headers["location"]
    error = error_of(key.post("/v1/jobs", {"spec": {**body["spec"], "seed": 1}}, headers=headers), 422)
    assert error["code"] == "idempotency_key_reused"
    assert len(stored(any_api)) == 1


def test_idempotency_keys_are_each_tenants_own(api: Api) -> None:
    headers = {"Idempotency-Key": "the-same"}
    for name in ("acme", "bolt"):
        key = api.tenant(name)
        answer = key.post("/v1/jobs", {"spec": harm_spec(api, key)}, headers=headers)
        assert answer.status_code == 202
        assert "idempotent-replayed" not in answer.headers
    assert len(stored(api)) == 2


def test_a_refused_request_does_not_use_its_key_up(api: Api) -> None:
    key = api.tenant("acme")
    spec, headers = harm_spec(api, key), {"Idempotency-Key": "try-1"}
    error_of(key.post("/v1/jobs", {"spec": {**spec, "base_model": "mdl_x"}}, headers=headers), 404)
    assert key.post("/v1/jobs", {"spec": spec}, headers=headers).status_code == 202


@pytest.mark.parametrize("value", ["", "x" * 256, "caf\xe9", "a\tb"])
def test_malformed_idempotency_keys(api: Api, value: str) -> None:
    spec = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}
    headers = {"Idempotency-Key": value.encode("latin-1")}
    error = error_of(api.platform.post("/v1/jobs", {"spec": spec}, headers=headers), 400)
    assert (error["code"], error["param"]) == ("invalid_idempotency_key", "Idempotency-Key")


# --- life -------------------------------------------------------------------------------------------------------------


def test_cancelling(any_api: Api) -> None:
    key = any_api.tenant("acme")
    job_id = key.post("/v1/jobs", {"spec": harm_spec(any_api, key)}).json()["id"]
    first, again = (key.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2))
    assert (first.status_code, first.json()["state"]) == (200, "cancelled")
    assert again.json() == first.json()
    done = any_api.publish(key.tenant_id, checkpoint("done")).job_id
    assert error_of(key.post(f"/v1/jobs/{done}/cancel"), 409)["code"] == "job_already_finished"


def test_cancelling_a_running_job_asks_its_worker(api: Api) -> None:
    key = api.tenant("acme")
    job_id = key.post("/v1/jobs", {"spec": harm_spec(api, key)}).json()["id"]
    with api.resources.writers.begin() as session:
        assert protocol.claim(session, job_id, "worker", 60)
    view = key.post(f"/v1/jobs/{job_id}/cancel").json()
    assert (view["state"], view["attempt"]) == ("cancelling", 1)


def test_pausing_and_resuming(any_api: Api) -> None:
    key = any_api.tenant("acme")
    job_id = key.post("/v1/jobs", {"spec": harm_spec(any_api, key)}).json()["id"]
    first, again = (key.post(f"/v1/jobs/{job_id}/pause") for _ in range(2))
    assert (first.status_code, first.json()["state"], first.json()["phase"]) == (200, "paused", "paused")
    assert again.json() == first.json()
    assert key.post(f"/v1/jobs/{job_id}/resume").json()["queue_position"] == 1
    refused = key.post(f"/v1/jobs/{job_id}/resume")
    assert error_of(refused, 409)["code"] == "invalid_transition"
    assert refused.headers["x-should-retry"] == "false"
    with any_api.resources.writers.begin() as session:
        assert protocol.claim(session, job_id, "worker", 60)
    assert (
        error_of(key.post(f"/v1/jobs/{job_id}/pause"), 409)["code"] == "invalid_transition"
    )  # its kind saves no checkpoint


def test_retrying_makes_a_new_job_from_the_checkpoint(any_api: Api) -> None:
    key = any_api.tenant("acme")
    job = key.post("/v1/jobs", {"spec": harm_spec(any_api, key), "metadata": {"ticket": "A-12"}}).json()
    assert error_of(key.post(f"/v1/jobs/{job['id']}/retry"), 409)["code"] == "invalid_transition"
    pointer = {"step": 3, "prefix": f"tenants/{key.tenant_id}/jobs/{job['id']}/checkpoints/1-3/", "files": []}
    with any_api.resources.writers.begin() as session:
        session.get_one(Job, job["id"]).checkpoint = pointer
    key.post(f"/v1/jobs/{job['id']}/cancel")
    headers = {"Idempotency-Key": "once"}
    answers = [key.post(f"/v1/jobs/{job['id']}/retry", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    retry = answers[0].json()
    assert answers[1].json() == retry
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert answers[1].headers["location"] == f"/v1/jobs/{retry['id']}"
    assert retry["id"] != job["id"]
    assert (retry["state"], retry["retried_from"], retry["metadata"]) == ("queued", job["id"], {"ticket": "A-12"})
    assert {retry[name] == job[name] for name in ("kind", "spec", "parents")} == {True}
    afresh = key.post(f"/v1/jobs/{job['id']}/retry", {"from_checkpoint": False, "metadata": {}}).json()
    checkpoints = {row.id: row.checkpoint for row in stored(any_api)}
    assert (checkpoints[retry["id"]], checkpoints[afresh["id"]], afresh["metadata"]) == (pointer, None, {})


def test_another_tenants_job_can_not_be_paused_resumed_or_retried(api: Api) -> None:
    job_id = api.publish(api.platform.tenant_id, checkpoint()).job_id
    stranger = api.tenant("stranger")
    for action in ("cancel", "pause", "resume", "retry"):
        assert error_of(stranger.post(f"/v1/jobs/{job_id}/{action}"), 404)["code"] == "not_found"


def test_a_key_in_use_is_a_retryable_conflict(postgres_settings: DatabaseSettings, tmp_path: Any) -> None:
    with run_api(postgres_settings, tmp_path) as api:
        api.client.app.state.resources = replace(api.resources, idempotency_patience=0.1)  # type: ignore[attr-defined]
        key, headers = api.platform, {"Idempotency-Key": "slow"}
        spec = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}
        row = IdempotencyKey(tenant_id=key.tenant_id, id=digest(["POST /v1/jobs", "slow"]), request_digest="0" * 64)
        with api.resources.writers() as session:
            session.add(row)
            session.flush()
            answer = key.post("/v1/jobs", {"spec": spec}, headers=headers)
            assert error_of(answer, 409)["code"] == "idempotency_in_progress"
            assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")
            session.rollback()
        assert key.post("/v1/jobs", {"spec": spec}, headers=headers).status_code == 202


def test_events_are_read_page_by_page(any_api: Api) -> None:
    key = any_api.tenant("acme")
    job_id = key.post("/v1/jobs", {"spec": harm_spec(any_api, key)}).json()["id"]
    with any_api.resources.writers.begin() as session:
        for number in range(4):
            protocol.append_event(session, job_id, Event("step", type="metrics", data={"loss": number / 3}))
    seen, page = [], {"has_more": True, "last_id": "0"}
    while page["has_more"]:
        page = key.get(f"/v1/jobs/{job_id}/events?limit=2&after={page['last_id']}").json()
        seen += page["data"]
    assert [event["seq"] for event in seen] == [1, 2, 3, 4, 5]
    assert seen[0]["message"] == "queued"
    assert [event["data"]["loss"] for event in seen[1:]] == [0, 1 / 3, 2 / 3, 1]


def test_lists_page_by_key_set(any_api: Api) -> None:
    key = any_api.tenant("acme")
    model = any_api.publish(key.tenant_id, checkpoint())
    ids = [any_api.publish(key.tenant_id, checkpoint(f"m{number}")).job_id for number in range(4)]
    newest_first = [*reversed(ids), model.job_id]
    first = key.get("/v1/jobs?limit=2").json()
    assert [job["id"] for job in first["data"]] == newest_first[:2]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, newest_first[0], newest_first[1])
    any_api.publish(key.tenant_id, checkpoint("late"))  # later rows shift no page
    second = key.get(f"/v1/jobs?limit=2&after={first['last_id']}").json()
    third = key.get(f"/v1/jobs?limit=2&after={second['last_id']}").json()
    assert [job["id"] for job in second["data"] + third["data"]] == newest_first[2:]
    assert not third["has_more"]


def test_lists_are_filtered_and_may_begin_with_the_oldest(any_api: Api) -> None:
    key = any_api.tenant("acme")
    spec = harm_spec(any_api, key)
    tickets = [{"ticket": 'A "1"', "team": "x"}, {"ticket": "A-2", "team": "x"}, {}]
    ids = [key.post("/v1/jobs", {"spec": spec, "metadata": metadata}).json()["id"] for metadata in tickets]
    key.post(f"/v1/jobs/{ids[1]}/cancel")

    def listed(**query: Any) -> list[str]:
        return [job["id"] for job in key.get("/v1/jobs", params=query).json()["data"]]

    assert listed(state="cancelled") == [ids[1]]
    assert listed(kind="harm_vector.build", order="asc") == ids
    assert listed(kind="harm_vector.build", state="queued") == [ids[2], ids[0]]
    assert listed(**{"metadata[team]": "x"}) == [ids[1], ids[0]]
    assert listed(**{"metadata[ticket]": 'A "1"', "metadata[team]": "x"}) == [ids[0]]
    assert listed(**{"metadata[ticket]": "x"}) == []
    # the cursor stays valid although its job left the filtered list
    assert listed(state="queued", order="asc", after=ids[1], kind="harm_vector.build") == [ids[2]]
    assert error_of(key.get("/v1/jobs", params={"metadata[k]": "x" * 513}), 422)["param"] == "metadata"


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("jobs", {"kind": "harm_vector.bild", "state": "done", "order": "up"}),
        ("fine_tuning/jobs", {"kind": "harm_vector.bild", "state": "done", "order": "up"}),
        ("artifacts", {"kind": "harm_vector", "order": "up"}),
        ("files", {"purpose": "rows", "order": "up"}),
    ],
)
def test_a_filter_that_nothing_could_pass_is_refused(api: Api, path: str, values: dict[str, str]) -> None:
    parameters = api.client.app.openapi()["paths"][f"/v1/{path}"]["get"]["parameters"]  # type: ignore[attr-defined]
    documented = {parameter["name"]: parameter["schema"] for parameter in parameters}
    for name, value in values.items():
        error = error_of(api.platform.get(f"/v1/{path}", params={name: value}), 422)
        assert (error["code"], error["param"]) == ("invalid_request", name)
        schema = documented[name].get("anyOf", [documented[name]])[0]
        assert schema["enum"][0] in error["message"]
        assert api.platform.get(f"/v1/{path}", params={name: schema["enum"][0]}).status_code == 200


def test_checkpoints_are_listed_while_they_are_kept(api: Api) -> None:
    key = api.tenant("acme")
    job_id = key.post("/v1/jobs", {"spec": harm_spec(api, key)}).json()["id"]
    assert key.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"] == []
    files = [{"path": "state.json", "sha256": "0" * 64, "size": 7}]
    with api.resources.writers.begin() as session:
        session.get_one(Job, job_id).checkpoint = {"step": 3, "prefix": "p/", "files": files, "saved_at": 11}
    (found,) = key.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert (found["step_number"], found["bytes"], found["created_at"], found["resumable"]) == (3, 7, 11, True)
    assert found["sha256"] == digest(files)


@pytest.mark.parametrize("cursor", ["job_" + "0" * 28, "nonsense", "a%00b", "..%2fx"])
def test_unknown_cursors(any_api: Api, cursor: str) -> None:
    for name in ("jobs", "datasets", "artifacts", "base_models", "profiles", "tenants"):
        error = error_of(any_api.platform.get(f"/v1/{name}?after={cursor}"), 400)
        assert (error["code"], error["param"]) == ("invalid_cursor", "after")


def test_a_foreign_cursor_is_unknown(api: Api) -> None:
    job_id = api.publish(api.platform.tenant_id, checkpoint()).job_id
    assert error_of(api.tenant("acme").get(f"/v1/jobs?after={job_id}"), 400)["code"] == "invalid_cursor"


@pytest.mark.parametrize("limit", ["0", "-1", "101", "1000000", "abc", "1.5", "NaN", ""])
def test_limits_are_bounded(api: Api, limit: str) -> None:
    assert error_of(api.platform.get(f"/v1/jobs?limit={limit}"), 422)["param"] == "limit"


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
