"""Nothing below /v1 answers without a key of the right scope, and nobody sees another tenant's rows."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import update

from armature.contracts.tenants import issue_key
from armature.db.models import ApiKey
from tests.support.api import Api, Key, checkpoint, error_of

SCOPE_OF = {
    "tenants": "platform",
    "keys": "platform",
    "files": "jobs",
    "datasets": "jobs",
    "base_models": "jobs",
    "artifacts": "jobs",
    "jobs": "jobs",
    "profiles": "profiles",
}
OPEN = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}


def routes(api: Api) -> list[tuple[str, str]]:
    """Every (method, path) that the app has, with parameters filled in."""
    found = [
        (method, re.sub(r"\{[^}]+\}", "x1", context.path_format or ""))
        for context in iter_route_contexts(api.client.app.routes)  # type: ignore[attr-defined]
        for method in context.methods or ()
    ]
    assert len(found) > 30
    return found


def guarded(api: Api) -> list[tuple[str, str]]:
    return [(method, path) for method, path in routes(api) if path not in OPEN]


def test_every_route_but_the_open_ones_lies_below_v1(api: Api) -> None:
    assert {path.split("/")[1] for _, path in guarded(api)} == {"v1"}


def test_every_route_needs_a_key(api: Api) -> None:
    for method, path in guarded(api):
        answer = api.client.request(method, path)
        assert error_of(answer, 401)["code"] == "invalid_api_key", (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_every_route_needs_its_scope(api: Api) -> None:
    keys = {scope: api.tenant(f"only-{scope}", scope) for scope in ("platform", "jobs", "profiles", "generate")}
    checked = 0
    for method, path in guarded(api):
        needed = SCOPE_OF[path.split("/")[2]]
        for scope, key in keys.items():
            answer = key.request(method, path)
            if scope == needed:
                assert answer.status_code not in (401, 403), (method, path, scope)
            else:
                assert error_of(answer, 403)["code"] == "missing_scope", (method, path, scope)
                checked += 1
    assert checked > 60


def forged(token: str) -> dict[str, Any]:
    """Ways to get a key wrong, and the headers that present them."""
    key_id, secret = token[3:19], token[20:]
    return {
        "no scheme": {"Authorization": token},
        "basic": {"Authorization": f"Basic {token}"},
        "empty": {"Authorization": "Bearer "},
        "two spaces": {"Authorization": f"Bearer  {token}"},
        "right id, wrong secret": {
            "Authorization": f"Bearer ak_{key_id}_{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}"
        },
        "unknown id": {"Authorization": f"Bearer ak_{'0' * 16}_{secret}"},
        "secret alone": {"Authorization": f"Bearer {secret}"},
        "upper case": {"Authorization": f"Bearer {token.upper()}"},
        "10 kB": {"Authorization": f"Bearer ak_{key_id}_{'a' * 10_000}"},
        "NUL": {"Authorization": f"Bearer {token}\0"},
        "two headers": [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")],
    }


def test_wrong_keys_are_refused_alike(api: Api) -> None:
    for name, headers in forged(api.platform.token).items():
        error = error_of(api.client.get("/v1/jobs", headers=headers), 401)
        assert error["code"] == "invalid_api_key", name
        assert api.platform.token not in error["message"]


def test_the_scheme_is_case_insensitive(api: Api) -> None:
    headers = {"Authorization": f"bearer {api.platform.token}"}
    assert api.client.get("/v1/jobs", headers=headers).status_code == 200


def test_a_key_in_the_query_is_no_key(api: Api) -> None:
    assert api.client.get(f"/v1/jobs?api_key={api.platform.token}").status_code == 401


def test_revoked_and_expired_keys_are_refused(api: Api) -> None:
    revoked, expired = api.tenant("revoked"), api.tenant("expired")
    key_id = revoked.token[3:19]
    first = api.platform.request("DELETE", f"/v1/keys/{key_id}")
    again = api.platform.request("DELETE", f"/v1/keys/{key_id}")
    assert first.json() == again.json()
    assert first.json()["revoked_at"] is not None
    with api.resources.writers.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.id == expired.token[3:19]).values(expires_at=1.0))
    for key in (revoked, expired):
        assert error_of(key.get("/v1/jobs"), 401)["message"] == "the API key is not valid"


def test_an_unknown_key_costs_a_comparison_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from armature_api import deps

    compared = []
    real = deps.same_secret
    monkeypatch.setattr(deps, "same_secret", lambda *hashes: compared.append(hashes) or real(*hashes))
    for token in (api.platform.token, issue_key().token, "nonsense"):
        api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert len(compared) == 3


def foreign_paths(api: Api, owner: Key) -> list[tuple[str, str, Any]]:
    """One thing of each kind that belongs to the owner, and the requests that name it."""
    dataset = owner.dataset("prompt", [{"prompt": "hello"}])
    file = owner.get(f"/v1/datasets/{dataset}").json()["file_id"]
    model, artifact = api.base_model(owner.tenant_id)
    spec = {"kind": "harm_vector.build", "base_model": model}
    pairs = owner.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}])
    job = owner.post("/v1/jobs", {"spec": {**spec, "harmful_pairs": pairs}}).json()["id"]
    created = owner.post("/v1/profiles", {"name": "care"})
    assert created.status_code == 201, created.text
    owner.post("/v1/profiles/care/versions", {"base_model": model})
    reads = [
        f"files/{file}",
        f"datasets/{dataset}",
        f"base_models/{model}",
        f"artifacts/{artifact.id}",
        f"artifacts/{artifact.id}/manifest",
        f"artifacts/{artifact.id}/files/config.json",
        f"jobs/{job}",
        f"jobs/{job}/events",
        "profiles/care",
        "profiles/care/versions",
        "profiles/care/versions/1",
    ]
    return [
        *(("GET", f"/v1/{path}", None) for path in reads),
        ("POST", f"/v1/jobs/{job}/cancel", None),
        ("POST", "/v1/profiles/care/versions", {"base_model": model}),
        ("PUT", "/v1/profiles/care/aliases/live", {"version": 1}),
        ("POST", "/v1/datasets", {"name": "x", "file_id": file, "format": "prompt"}),
    ]


def test_foreign_and_missing_ids_look_alike(any_api: Api) -> None:
    owner, stranger = any_api.tenant("owner"), any_api.tenant("stranger")
    for method, path, body in foreign_paths(any_api, owner):
        assert owner.request(method, path, json=body).status_code < 300, (method, path)
        foreign = error_of(stranger.request(method, path, json=body), 404)
        missing_path = re.sub(r"_[0-9a-f]{28}|care", "_" + "0" * 28, path)
        missing_body = body and {
            key: re.sub(r"_[0-9a-f]{28}", "_" + "0" * 28, str(v)) if key == "file_id" else v for key, v in body.items()
        }
        missing = error_of(stranger.request(method, missing_path, json=missing_body), 404)
        assert {**foreign, "request_id": None} == {**missing, "request_id": None}, (method, path)


def test_lists_hold_the_tenants_own_rows_only(api: Api) -> None:
    owner, stranger = api.tenant("owner"), api.tenant("stranger")
    foreign_paths(api, owner)
    for name in ("jobs", "datasets", "artifacts", "base_models", "profiles"):
        assert owner.get(f"/v1/{name}").json()["data"], name
        assert stranger.get(f"/v1/{name}").json() == {
            "object": "list",
            "data": [],
            "has_more": False,
            "first_id": None,
            "last_id": None,
        }


def test_shared_results_are_for_everybody_and_stay_the_makers(api: Api) -> None:
    stranger = api.tenant("stranger")
    model, artifact = api.base_model(api.platform.tenant_id, "shared-base", shared=True)
    assert stranger.get(f"/v1/base_models/{model}").json()["shared"] is True
    seen = stranger.get(f"/v1/artifacts/{artifact.id}").json()
    assert seen["job_id"] is None
    assert api.platform.get(f"/v1/artifacts/{artifact.id}").json()["job_id"] == artifact.job_id
    assert stranger.get(f"/v1/artifacts/{artifact.id}/files/config.json").status_code == 200
    assert [model["name"] for model in stranger.get("/v1/base_models").json()["data"]] == ["shared-base"]
    assert stranger.get(f"/v1/jobs/{artifact.job_id}").status_code == 404


@pytest.mark.parametrize(
    "wanted", ["bytes=abc", "bytes=5-2", "bytes=99999999999999999999-", "bytes=0-1,9999-", "lines=1-2", "", "bytes=-0"]
)
def test_a_range_that_can_not_be_served_gets_the_whole_file(api: Api, wanted: str) -> None:
    key = api.tenant("acme")
    artifact = api.publish(key.tenant_id, checkpoint())
    path = f"/v1/artifacts/{artifact.id}/files/config.json"
    whole = key.get(path)
    assert whole.status_code == 200
    part = key.get(path, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, whole.content[1:4])
    answer = key.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("id", ["..%2Fx", "%2e%2e%2f%2e%2e%2fetc", "x" * 10_000, "a%00b", "%ff", "job_1'--", "ｊob_1"])
def test_malformed_ids_are_just_not_there(any_api: Api, id: str) -> None:
    key = any_api.tenant("acme")
    for name in ("jobs", "files", "datasets", "artifacts", "base_models", "profiles"):
        assert error_of(key.get(f"/v1/{name}/{id}"), 404)["code"] == "not_found"
    assert error_of(any_api.platform.request("DELETE", f"/v1/keys/{id}"), 404)["code"] == "not_found"
    artifact = any_api.publish(key.tenant_id, checkpoint())
    assert error_of(key.get(f"/v1/artifacts/{artifact.id}/files/{id}"), 404)["code"] == "not_found"
