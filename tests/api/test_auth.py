"""Every route below /v1 needs a key with its scope, and shows rows of the key's tenant only."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import update

from armature.contracts.tenants import Scope, issue_key
from armature.db.models import ApiKey
from armature_api import callers
from tests.support.api import Api, Key, checkpoint, error_of, task_vector

AREA_OF = {
    "tenants": "platform",
    "keys": "platform",
    "audit": "audit",
    "files": "data",
    "datasets": "data",
    "dataset_checks": "data",
    "base_models": "artifacts",
    "base_model_aliases": "artifacts",
    "artifacts": "artifacts",
    "jobs": "jobs",
    "fine_tuning": "jobs",
    "models": "jobs",
    "profiles": "profiles",
}
ELSEWHERE = {("POST", "/v1/artifacts/{artifact_id}/links"), ("PUT", "/v1/base_model_aliases/{alias}")}
"""Routes tested elsewhere: links need an S3 store (test_artifacts), and a new alias is no foreign id. The ids in their
bodies are covered by ``test_links_and_aliases_to_foreign_ids_are_refused``."""
OPEN = {"/healthz", "/readyz", "/metrics", "/openapi.json"}
"""Routes that need no API key: health, the API's description, and metrics, which have a token of their own."""


def routes(api: Api) -> list[tuple[str, str]]:
    """List the app's routes as (method, path template)."""
    found = [
        (method, context.path_format or "")
        for context in iter_route_contexts(api.client.app.routes)  # type: ignore[attr-defined]
        for method in context.methods or ()
    ]
    assert len(found) > 30
    return found


def guarded(api: Api) -> list[tuple[str, str]]:
    return [(method, path) for method, path in routes(api) if path not in OPEN]


def filled(template: str) -> str:
    return re.sub(r"\{[^}]+\}", "x1", template)


def scope_of(method: str, template: str) -> str:
    area = AREA_OF[template.split("/")[2]]
    return area if area == "platform" else f"{area}:{'read' if method == 'GET' else 'write'}"


def test_every_route_but_the_open_ones_lies_below_v1(api: Api) -> None:
    assert {path.split("/")[1] for _, path in guarded(api)} == {"v1"}
    assert {path for _, path in routes(api) if not path.startswith("/v1/")} == OPEN


def test_every_route_needs_a_key(api: Api) -> None:
    for method, template in guarded(api):
        answer = api.client.request(method, filled(template))
        assert error_of(answer, 401)["code"] == "invalid_api_key", (method, template)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.bad_input(60)
def test_every_route_needs_its_scope(api: Api) -> None:
    """A key with all other scopes is refused; a key with the route's scope alone is accepted."""
    for method, template in guarded(api):
        needed = scope_of(method, template)
        others = api.key(api.platform.tenant_id, *(scope for scope in get_args(Scope) if scope != needed))
        refusal = error_of(others.request(method, filled(template)), 403)
        assert refusal["code"] == "missing_scope", (method, template)
        assert needed in refusal["message"]
        alone = api.key(api.platform.tenant_id, needed)
        assert alone.request(method, filled(template)).status_code not in (401, 403), (method, template)


def forged(token: str) -> dict[str, Any]:
    """Build headers with wrong keys, by what is wrong with them."""
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


@pytest.mark.bad_input(59)
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
    compared = []
    real = callers.same_secret
    monkeypatch.setattr(callers, "same_secret", lambda *hashes: compared.append(hashes) or real(*hashes))
    for token in (api.platform.token, issue_key().token, "nonsense"):
        api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert len(compared) == 3


def test_too_many_wrong_keys_block_an_address(api: Api) -> None:
    clock = api.resources.counter.clock
    clock.now = lambda: 60.0
    limit = api.resources.settings.http.wrong_keys_per_minute
    answers = [
        api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {issue_key().token}"}) for _ in range(limit + 2)
    ]
    assert [answer.status_code for answer in answers] == [401] * limit + [429] * 2
    assert int(answers[-1].headers["retry-after"]) in range(1, 61)
    assert api.platform.get("/v1/jobs").status_code == 429  # a right key from the same address
    assert api.client.get("/v1/jobs").status_code == 401  # a request without a key is no guess
    clock.now = lambda: 120.0
    assert api.platform.get("/v1/jobs").status_code == 200


def foreign_paths(api: Api, owner: Key) -> list[tuple[str, str, Any]]:
    """Create a row of each kind for the owner, and list the requests that name it."""
    dataset = owner.dataset("prompt", [{"prompt": "hello"}])
    file = owner.get(f"/v1/datasets/{dataset}").json()["file_id"]
    model, artifact = api.base_model(owner.tenant_id)
    spec = {"kind": "harm_vector.build", "base_model": model}
    spare = owner.dataset("prompt", [{"prompt": "spare"}])
    spare_file = owner.upload(b'{"prompt": "unused"}\n').json()["id"]
    spare_model, _ = api.base_model(owner.tenant_id, "spare")
    owner.request("PUT", "/v1/base_model_aliases/mine", json={"base_model": model})
    unused = api.publish(owner.tenant_id, task_vector())
    unnamed = api.publish(owner.tenant_id, checkpoint("unnamed"))
    pairs = owner.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}])
    job = owner.post("/v1/jobs", {"spec": {**spec, "harmful_pairs": pairs}}).json()["id"]
    rated = owner.dataset("preference", [{"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": 0}}])
    training = {"kind": "arm.train", "base_model": model, "pairs": rated, "attributes": ["empathy"]}
    tuning = owner.post("/v1/jobs", {"spec": training}).json()["id"]
    created = owner.post("/v1/profiles", {"name": "care"})
    assert created.status_code == 201, created.text
    for _ in range(2):
        owner.post("/v1/profiles/care/versions", {"base_model": model})
    for version in (1, 2):
        owner.request("PUT", "/v1/profiles/care/aliases/live", json={"version": version})
    gate = {"rules": [{"metric": "asr", "at_most": 0.1}]}
    owner.request("PUT", "/v1/profiles/care/aliases/gated/gate", json=gate)
    reads = [
        f"files/{file}",
        f"files/{file}/content",
        f"datasets/{dataset}",
        f"base_models/{model}",
        f"artifacts/{artifact.id}",
        f"artifacts/{artifact.id}/manifest",
        f"artifacts/{artifact.id}/lineage",
        f"artifacts/{artifact.id}/files/config.json",
        f"jobs/{job}",
        f"jobs/{job}/events",
        f"jobs/{job}/checkpoints",
        f"fine_tuning/jobs/{tuning}",
        f"fine_tuning/jobs/{tuning}/events",
        f"fine_tuning/jobs/{tuning}/checkpoints",
        f"models/{model}",
        "profiles/care",
        "profiles/care/versions",
        "profiles/care/versions/1",
        "profiles/care/aliases/live",
        "profiles/care/aliases/live/history",
        "profiles/care/aliases/gated/gate",
    ]
    return [
        *(("GET", f"/v1/{path}", None) for path in reads),
        ("POST", f"/v1/jobs/{job}/pause", None),
        ("POST", f"/v1/jobs/{job}/resume", None),
        ("POST", f"/v1/jobs/{job}/cancel", None),
        ("POST", f"/v1/jobs/{job}/retry", None),
        ("POST", f"/v1/fine_tuning/jobs/{tuning}/pause", None),
        ("POST", f"/v1/fine_tuning/jobs/{tuning}/resume", None),
        ("POST", f"/v1/fine_tuning/jobs/{tuning}/cancel", None),
        ("POST", "/v1/profiles/care/versions", {"base_model": model}),
        ("POST", "/v1/profiles/care/aliases/live/rollback", {}),
        ("PUT", "/v1/profiles/care/aliases/live", {"version": 1}),
        ("PUT", "/v1/profiles/care/aliases/other/gate", gate),
        ("DELETE", "/v1/profiles/care/aliases/gated/gate", None),
        ("POST", "/v1/datasets", {"name": "x", "file_id": file, "format": "prompt"}),
        ("POST", "/v1/base_models", {"name": "named", "artifact": unnamed.id}),
        ("POST", f"/v1/artifacts/{artifact.id}/verify", None),
        ("PATCH", f"/v1/artifacts/{unused.id}", {"expires_at": 4_102_444_800}),
        ("DELETE", f"/v1/artifacts/{unused.id}", None),
        ("DELETE", "/v1/base_model_aliases/mine", None),
        ("DELETE", f"/v1/base_models/{spare_model}", None),
        ("DELETE", f"/v1/datasets/{spare}", None),
        ("DELETE", f"/v1/files/{spare_file}", None),
    ]


def test_the_foreign_paths_cover_every_route_with_an_id(api: Api) -> None:
    """A new route with an id must be added to ``foreign_paths``."""
    named = {
        (method, template)
        for method, template in guarded(api)
        if "{" in template and AREA_OF[template.split("/")[2]] != "platform"
    }
    patterns = {(m, t): re.compile(re.sub(r"\{\w+(:path)?\}", "[^/]+", t)) for m, t in named}
    paths = [(method, path) for method, path, _ in foreign_paths(api, api.tenant("owner"))]
    covered = {
        key for key, pattern in patterns.items() if any(key[0] == m and pattern.fullmatch(path) for m, path in paths)
    }
    assert covered == named - ELSEWHERE


@pytest.mark.bad_input(57)
def test_foreign_and_missing_ids_look_alike(any_api: Api) -> None:
    owner, stranger = any_api.tenant("owner"), any_api.tenant("stranger")
    for method, path, body in foreign_paths(any_api, owner):
        assert owner.request(method, path, json=body).status_code < 300, (method, path)
        foreign = error_of(stranger.request(method, path, json=body), 404)
        missing_path = re.sub(r"_[0-9a-f]{28}|care", "_" + "0" * 28, path)
        missing_body = body and {
            key: re.sub(r"_[0-9a-f]{28}", "_" + "0" * 28, str(v)) if key in ("file_id", "artifact") else v
            for key, v in body.items()
        }
        missing = error_of(stranger.request(method, missing_path, json=missing_body), 404)
        assert {**foreign, "request_id": None} == {**missing, "request_id": None}, (method, path)


def test_links_and_aliases_to_foreign_ids_are_refused(any_api: Api) -> None:
    owner, stranger = any_api.tenant("owner"), any_api.tenant("stranger")
    model, artifact = any_api.base_model(owner.tenant_id)
    for id in (artifact.id, "art_" + "0" * 28):
        link = stranger.post(f"/v1/artifacts/{id}/links", {"path": "config.json"})
        assert error_of(link, 404)["message"] == "there is no such artifact"
    for id in (model, "mdl_" + "0" * 28):
        alias = stranger.request("PUT", "/v1/base_model_aliases/mine", json={"base_model": id})
        assert error_of(alias, 404)["message"] == "there is no such base model"


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


@pytest.mark.bad_input(57)
@pytest.mark.parametrize("id", ["..%2Fx", "%2e%2e%2f%2e%2e%2fetc", "x" * 10_000, "a%00b", "%ff", "job_1'--", "ｊob_1"])
def test_malformed_ids_are_not_found(any_api: Api, id: str) -> None:
    key = any_api.tenant("acme")
    for name in ("jobs", "files", "datasets", "artifacts", "base_models", "profiles"):
        assert error_of(key.get(f"/v1/{name}/{id}"), 404)["code"] == "not_found"
    assert error_of(any_api.platform.request("DELETE", f"/v1/keys/{id}"), 404)["code"] == "not_found"
    artifact = any_api.publish(key.tenant_id, checkpoint())
    assert error_of(key.get(f"/v1/artifacts/{artifact.id}/files/{id}"), 404)["code"] == "not_found"
