"""Requests that must not get through, a test per row: what is wrong with them is named, and nothing is stored.

What belongs to generating is in tests/decoder/test_bad_input.py, to keys in test_auth.py, to limits in test_quotas.py,
to aliases in test_aliases.py, and to the bytes of JSON in tests/http/test_strict_json.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from armature.settings import HttpSettings
from armature_api.app import create_app
from tests.support.api import Api, Key, error_of

JSON = {"Content-Type": "application/json"}
VERSION = '{"base_model": "mdl_x", "harm_vector": "art_x", "arm": "art_y", %s}'


def post(key: Key, content: bytes | str, path: str = "/v1/profiles", **headers: str) -> Any:
    return key.request("POST", path, content=content, headers={**JSON, **headers})


def refused(key: Key, content: bytes | str, status: int, code: str, path: str = "/v1/profiles") -> dict[str, Any]:
    error = error_of(post(key, content, path), status)
    assert error["code"] == code, error
    return error


def versions(key: Key) -> str:
    key.post("/v1/profiles", {"name": "care"})
    return "/v1/profiles/care/versions"


@pytest.mark.bad_input(1, 2, 3)
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_numbers_are_refused_without_echo(api: Api, value: str) -> None:
    path = versions(api.platform)
    body = VERSION % f'"guidance": {{"preference": {{"empathy": {value}}}}}'
    error = refused(api.platform, body, 422, "non_finite_number", path)
    assert error["param"] == "guidance.preference.empathy"
    assert value not in error["message"]


@pytest.mark.bad_input(5)
@pytest.mark.parametrize("guidance", ['{"preference": {"empathy": -1}}', '{"guidance_weight": -1}'])
def test_negative_weights_are_refused(api: Api, guidance: str) -> None:
    error = refused(api.platform, VERSION % f'"guidance": {guidance}', 422, "invalid_request", versions(api.platform))
    assert error["param"].startswith("guidance.")


@pytest.mark.bad_input(6)
@pytest.mark.parametrize("value", ['"0.5"', "true", "[1]", "null"])
def test_numbers_of_another_type_are_refused(api: Api, value: str) -> None:
    error = refused(api.platform, VERSION % f'"harm_scale": {value}', 422, "invalid_request", versions(api.platform))
    assert error["param"] == "harm_scale"


@pytest.mark.bad_input(7)
def test_duplicate_keys_are_refused(api: Api) -> None:
    refused(api.platform, '{"name": "a", "name": "b"}', 400, "duplicate_key")


@pytest.mark.bad_input(8)
def test_an_integer_of_400_digits_is_refused(api: Api) -> None:
    error = refused(
        api.platform, VERSION % f'"harm_scale": {"9" * 400}', 422, "invalid_request", versions(api.platform)
    )
    assert error["param"] == "harm_scale"


@pytest.mark.bad_input(9)
@pytest.mark.parametrize("content", [f'{{"name": {"9" * 5000}}}', "[" * 200_000])
def test_bodies_beyond_the_parsers_bounds_are_refused(api: Api, content: str) -> None:
    refused(api.platform, content, 400, "malformed_body")


@pytest.mark.bad_input(10, 11)
@pytest.mark.parametrize("text", [r"\ud800", r"a\u0000b"])
def test_surrogates_and_nul_in_text_are_refused(any_api: Api, text: str) -> None:
    error = refused(any_api.platform, f'{{"name": "care", "description": "{text}"}}', 422, "invalid_request")
    assert error["param"] == "description"
    assert any_api.platform.get("/v1/profiles").json()["data"] == []


@pytest.mark.bad_input(12)
@pytest.mark.parametrize("field", ["is_admin", "tenant_id", "state", "fence", "id", "created_at"])
def test_unknown_fields_are_named(api: Api, field: str) -> None:
    for path, body in {"/v1/profiles": {"name": "care"}, "/v1/datasets": {"name": "a", "file_id": "file_x"}}.items():
        error = error_of(api.platform.post(path, {**body, field: "x"}), 422)
        assert (error["code"], error["param"]) == ("unknown_field", field)
    spec = {"kind": "base_model.import", "name": "a", "source": {"type": "hub", "repo_id": "a/b"}}
    for body, param in (({"spec": spec, field: 1}, field), ({"spec": {**spec, field: 1}}, f"spec.{field}")):
        assert error_of(api.platform.post("/v1/jobs", body), 422)["param"] == param


@pytest.mark.bad_input(13, 14)
def test_only_utf_8_is_read(api: Api) -> None:
    for content in ('{"name": "a"}'.encode("utf-16"), b'{"name": "\xc3\x28"}'):
        refused(api.platform, content, 400, "malformed_body")
    assert post(api.platform, b"\xef\xbb\xbf" + b'{"name": "marked"}').status_code == 201


@pytest.mark.bad_input(15)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types_are_refused(api: Api, content_type: str) -> None:
    answer = api.platform.request("POST", "/v1/profiles", content="{}", headers={"Content-Type": content_type})
    assert error_of(answer, 415)["code"] == "unsupported_media_type"


@pytest.mark.bad_input(16)
def test_large_bodies_are_refused(api: Api) -> None:
    limit = api.resources.settings.api.max_body
    refused(api.platform, b'{"name": "' + b"x" * limit + b'"}', 413, "payload_too_large")

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 100_000] * (limit // 100_000 + 1)

    answer = api.platform.request("POST", "/v1/profiles", content=chunks(), headers=JSON)
    assert error_of(answer, 413)["code"] == "payload_too_large"


@pytest.mark.bad_input(17)
@pytest.mark.parametrize("content", ["", "null", "[]", '"x"', "1"])
def test_bodies_that_are_no_object_are_refused(api: Api, content: str) -> None:
    assert post(api.platform, content).status_code == 422


METADATA = [
    {f"k{n}": "v" for n in range(17)},
    {"k" * 65: "v"},
    {"k": "v" * 513},
    {"k": 1},
    {"k": None},
]


@pytest.mark.bad_input(54)
@pytest.mark.parametrize("metadata", METADATA, ids=["17 keys", "key of 65", "value of 513", "number", "null"])
def test_metadata_beyond_its_bounds_is_refused(api: Api, metadata: dict[str, Any]) -> None:
    spec = {"kind": "base_model.import", "name": "a", "source": {"type": "hub", "repo_id": "a/b"}}
    error = error_of(api.platform.post("/v1/jobs", {"spec": spec, "metadata": metadata}), 422)
    assert error["param"].startswith("metadata")


@pytest.mark.bad_input(55)
@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tkey", "caf\u00e9"])
def test_malformed_idempotency_keys_are_refused(api: Api, key: str) -> None:
    spec = {"kind": "base_model.import", "name": "a", "source": {"type": "hub", "repo_id": "a/b"}}
    headers = {"Idempotency-Key": key.encode("latin-1")}
    answer = api.platform.post("/v1/jobs", {"spec": spec}, headers=headers)
    assert error_of(answer, 400)["code"] == "invalid_idempotency_key"


@pytest.mark.bad_input(56)
def test_foreign_cursors_and_bad_limits_are_refused(any_api: Api) -> None:
    owner, stranger = any_api.tenant("owner"), any_api.tenant("stranger")
    for key in (owner, stranger):
        key.post("/v1/profiles", {"name": "care"})
    foreign = owner.get("/v1/profiles").json()["data"][0]["id"]
    for after in (foreign, "prf_none", "../x", "", "x" * 10_000, "a\0b"):
        error = error_of(stranger.get("/v1/profiles", params={"after": after}), 400)
        assert (error["code"], error["param"]) == ("invalid_cursor", "after")
    for limit in ("0", "-1", "1000000", "abc", "1.5", ""):
        assert error_of(stranger.get("/v1/profiles", params={"limit": limit}), 422)["param"] == "limit"


@pytest.mark.bad_input(58)
def test_cancelling_twice_is_idempotent_and_resuming_is_a_conflict(api: Api) -> None:
    spec = {"kind": "base_model.import", "name": "a", "source": {"type": "hub", "repo_id": "a/b"}}
    job = api.platform.post("/v1/jobs", {"spec": spec}).json()["id"]
    first, again = (api.platform.post(f"/v1/jobs/{job}/cancel") for _ in range(2))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    error_of(api.platform.post(f"/v1/jobs/{job}/resume"), 409)


@pytest.mark.bad_input(62)
def test_large_headers_and_other_methods_are_refused(api: Api) -> None:
    large = api.platform.get("/v1/jobs", headers={"X-Padding": "x" * 17_000})
    assert error_of(large, 431)["code"] == "headers_too_large"
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "PATCH"):
        answer = api.platform.request(method, "/v1/jobs")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, POST"
    override = api.platform.get("/v1/jobs", headers={"X-HTTP-Method-Override": "DELETE"})
    assert override.status_code == 200


@pytest.mark.bad_input(63)
@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "http://[::ffff:127.0.0.1]/", "http://2130706433/", "file:///etc/passwd"]
)
def test_urls_are_refused_as_sources(api: Api, url: str) -> None:
    sources = [
        {"type": "url", "url": url},
        {"type": "hub", "repo_id": url},
        {"type": "hub", "repo_id": "a/b", "url": url},
    ]
    for source in sources:
        spec = {"kind": "base_model.import", "name": "a", "source": source}
        assert error_of(api.platform.post("/v1/jobs", {"spec": spec}), 422)["param"].startswith("spec.source")


SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


def test_every_answer_has_the_headers_of_data(api: Api) -> None:
    for path in ("/v1/jobs", "/healthz", "/nowhere", "/openapi.json"):
        answer = api.platform.get(path)
        assert {name: answer.headers[name] for name in SECURITY} == SECURITY, path


def test_optional_routes_are_closed_by_default(api: Api) -> None:
    closed = api.resources.settings.model_copy(update={"http": HttpSettings()})
    with TestClient(create_app(closed)) as client:
        for path in ("/metrics", "/docs", "/redoc", "/docs/oauth2-redirect"):
            assert error_of(client.get(path), 404)["code"] == "not_found"
        origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/jobs", headers=origin).status_code == 405
        assert "access-control-allow-origin" not in client.get("/healthz", headers=origin).headers
    assert error_of(api.client.get("/metrics"), 401)["code"] == "invalid_api_key"
    assert error_of(api.platform.get("/metrics"), 401)["code"] == "invalid_api_key"


def test_settings_open_optional_routes(api: Api) -> None:
    http = HttpSettings(docs=True, cors_origins=["https://console.example"])
    with TestClient(create_app(api.resources.settings.model_copy(update={"http": http}))) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "content-security-policy" not in page.headers
        for origin, allowed in (("https://console.example", True), ("https://evil.example", False)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = client.options("/v1/jobs", headers=headers)
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed


def test_no_answer_repeats_a_secret(api: Api) -> None:
    for headers in ({"Authorization": "Bearer hunter2-hunter2"}, {"Authorization": "Basic hunter2"}):
        answer = api.client.get("/v1/jobs", headers=headers)
        assert not re.search("hunter2", answer.text + str(answer.headers))


HARM = {"kind": "harm_vector.build", "base_model": "mdl_x", "harmful_pairs": "ds_x"}
ARM = {"kind": "arm.train", "base_model": "mdl_x", "pairs": "ds_x"}


@pytest.mark.bad_input(4, 51)
@pytest.mark.parametrize(
    ("spec", "param"),
    [
        *((HARM | {"training": {"learning_rate": rate}}, "training.learning_rate") for rate in (0, -1e-4, 1e9)),
        (HARM | {"training": {"batch_size": 0}}, "training.batch_size"),
        (HARM | {"training": {"steps": 10**9}}, "training.steps"),
        *((HARM | {"selection": {"density": share}}, "selection.density") for share in (-0.1, 0, 1.5)),
        (HARM | {"scale": -1}, "scale"),
        (HARM | {"seed": "7"}, "seed"),
        (ARM | {"training": {"learning_rate": 2}}, "training.learning_rate"),
        (ARM | {"training": {"steps": 0}}, "training.steps"),
        (ARM | {"adapter": {"rank_shared": 10**6}}, "adapter.rank_shared"),
        (ARM | {"loss": {"beta": 0}}, "loss.beta"),
        (ARM | {"attributes": ["empathy", "empathy"]}, "attributes"),
    ],
    ids=str,
)
def test_hyperparameters_out_of_range_store_no_job(api: Api, spec: dict[str, Any], param: str) -> None:
    error = error_of(api.platform.post("/v1/jobs", {"spec": spec}), 422)
    assert (error["code"], error["param"]) == ("invalid_request", f"spec.{param}")
    assert api.platform.get("/v1/jobs").json()["data"] == []
