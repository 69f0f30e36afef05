"""Jobs after their submission: cancelling, pausing, retrying, their log and their checkpoints."""

from __future__ import annotations

from armature.contracts.base import digest
from armature.db import jobs as protocol
from armature.db.models import Job
from armature.db.transitions import Event
from tests.api.test_job_routes import harm_spec, stored
from tests.support.api import Api, checkpoint, error_of


def test_a_queued_job_is_cancelled_at_once(any_api: Api) -> None:
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


def test_a_job_is_paused_and_resumed(any_api: Api) -> None:
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
