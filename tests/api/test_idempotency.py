"""Idempotency: every route that creates a row does so once per Idempotency-Key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from armature.contracts.base import digest
from armature.db.base import Base
from armature.db.models import ApiKey, AuditEntry, IdempotencyKey
from armature.settings import DatabaseSettings
from tests.api.test_job_routes import harm_spec, stored
from tests.support.api import Api, Key, error_of, run_api

REPEATABLE = {
    "/v1/jobs/{job_id}/cancel",
    "/v1/jobs/{job_id}/pause",
    "/v1/fine_tuning/jobs/{job_id}/cancel",
    "/v1/fine_tuning/jobs/{job_id}/pause",
    "/v1/artifacts/{artifact_id}/links",
    "/v1/artifacts/{artifact_id}/verify",
    "/v1/dataset_checks",
}
"""Routes that write nothing, or whose repetition changes nothing."""


def test_every_post_takes_a_key_or_can_be_repeated_as_it_is(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    posts = {path: operations["post"] for path, operations in paths.items() if "post" in operations}
    takes_key = {
        path
        for path, operation in posts.items()
        if any(parameter["name"] == "idempotency-key" for parameter in operation.get("parameters", []))
    }
    assert takes_key | REPEATABLE == set(posts)
    assert not takes_key & REPEATABLE


def requests(api: Api, key: Key) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """A path, a body that creates a row there, and another such body."""
    file = key.upload(b'{"prompt": "a"}\n').json()["id"]
    model, made = api.base_model(key.tenant_id)
    yield "/v1/base_models", {"name": "named", "artifact": made.id}, {"name": "other", "artifact": made.id}
    yield "/v1/datasets", {"name": "one", "file_id": file}, {"name": "two", "file_id": file}
    yield "/v1/profiles", {"name": "care"}, {"name": "haste"}
    yield "/v1/profiles/care/versions", {"base_model": model}, {"base_model": "another"}
    for version in (1, 2, 3):
        key.post("/v1/profiles/care/versions", {"base_model": model})
        key.request("PUT", "/v1/profiles/care/aliases/live", json={"version": version})
    yield "/v1/profiles/care/aliases/live/rollback", {}, {"if_version": 1}
    yield "/v1/tenants", {"name": "acme"}, {"name": "umbrella"}


def rows(api: Api) -> int:
    """Count the rows of every table except the two that record requests."""
    with api.resources.readers.begin() as session:
        return sum(
            session.scalars(select(func.count()).select_from(table)).one()
            for table in Base.metadata.sorted_tables
            if table not in (IdempotencyKey.__table__, AuditEntry.__table__, ApiKey.__table__)
        )


@pytest.mark.bad_input(55)
def test_what_is_created_twice_with_one_key_is_there_once(any_api: Api) -> None:
    key, once = any_api.platform, {"Idempotency-Key": "once"}
    for path, body, other in requests(any_api, key):
        first = key.post(path, body, headers=once)
        assert first.status_code in (200, 201), (path, first.text)
        made = rows(any_api)
        again = key.post(path, body, headers=once)
        assert (again.status_code, again.json()) == (first.status_code, first.json()), path
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers.get("location") == first.headers.get("location")
        refused = error_of(key.post(path, other, headers=once), 422)
        assert (refused["code"], refused["param"]) == ("idempotency_key_reused", "Idempotency-Key"), path
        assert rows(any_api) == made, path


def test_an_upload_with_a_key_makes_one_file(any_api: Api) -> None:
    key, once, form = any_api.platform, {"Idempotency-Key": "once"}, {"purpose": "dataset"}

    def upload(content: bytes, name: str = "a.jsonl", **fields: str) -> Any:
        return key.request("POST", "/v1/files", files={"file": (name, content)}, data=form | fields, headers=once)

    first, again = (upload(b'{"prompt": "a"}\n') for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    for other in (upload(b'{"prompt": "b"}\n'), upload(b'{"prompt": "a"}\n', "b.jsonl")):
        assert error_of(other, 422)["code"] == "idempotency_key_reused"
    assert [file["id"] for file in key.get("/v1/files").json()["data"]] == [first.json()["id"]]


@pytest.mark.parametrize("rotated", [False, True])
def test_a_secret_is_shown_once_and_kept_nowhere(any_api: Api, rotated: bool) -> None:
    key, once = any_api.platform, {"Idempotency-Key": "once"}
    keys = f"/v1/tenants/{key.tenant_id}/keys"
    path = f"/v1/keys/{key.post(keys, {}).json()['id']}/rotate" if rotated else keys
    first = key.post(path, {}, headers=once).json()
    refused = key.post(path, {}, headers=once)
    error = error_of(refused, 409)
    assert (error["code"], refused.headers["x-should-retry"]) == ("answer_not_kept", "false")
    assert first["id"] in error["message"]
    assert first["token"] not in refused.text
    with any_api.resources.readers.begin() as session:
        assert session.scalars(select(func.count()).select_from(ApiKey)).one() == 2 + rotated
        (kept,) = session.scalars(select(IdempotencyKey.answer))
    assert kept == {"body": {"id": first["id"]}, "headers": {}}
    assert error_of(key.post(path, {"name": "x"} if not rotated else {"overlap_seconds": 1}, headers=once), 422)


def test_a_refused_request_does_not_use_its_key_up(any_api: Api) -> None:
    key, once = any_api.platform, {"Idempotency-Key": "once"}
    file = key.upload(b"{}\n").json()["id"]
    good = key.upload(b'{"prompt": "a"}\n').json()["id"]
    assert key.post("/v1/datasets", {"name": "x", "file_id": file}, headers=once).status_code == 422
    assert key.post("/v1/datasets", {"name": "x", "file_id": good}, headers=once).status_code == 201


def test_resuming_with_a_key_is_answered_again(any_api: Api) -> None:
    key, once = any_api.platform, {"Idempotency-Key": "once"}
    spec = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}
    job = key.post("/v1/jobs", {"spec": spec}).json()["id"]
    key.post(f"/v1/jobs/{job}/pause")
    first, again = (key.post(f"/v1/jobs/{job}/resume", headers=once) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())


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


def test_a_refused_job_does_not_use_its_key_up(api: Api) -> None:
    key = api.tenant("acme")
    spec, headers = harm_spec(api, key), {"Idempotency-Key": "try-1"}
    error_of(key.post("/v1/jobs", {"spec": {**spec, "base_model": "mdl_x"}}, headers=headers), 404)
    assert key.post("/v1/jobs", {"spec": spec}, headers=headers).status_code == 202


@pytest.mark.parametrize("value", ["", "x" * 256, "caf\xe9", "a\tb"])
def test_malformed_keys_are_refused(api: Api, value: str) -> None:
    spec = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}
    headers = {"Idempotency-Key": value.encode("latin-1")}
    error = error_of(api.platform.post("/v1/jobs", {"spec": spec}, headers=headers), 400)
    assert (error["code"], error["param"]) == ("invalid_idempotency_key", "Idempotency-Key")


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
