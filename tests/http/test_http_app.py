"""The HTTP layer of both services: every response that is not 2xx is the envelope, and ids are echoed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from pydantic import Field

from armature.contracts.base import Contract
from armature.errors import RateLimited, Unauthenticated
from armature.http.app import add_routes, make_http_app
from armature.http.auth import bearer_token, same_secret, split_token
from armature.http.json import StrictJSONRoute
from armature.http.limits import BodyLimits
from tests.support.api import error_of

KEY = {"Authorization": "Bearer ak_test"}


class Folder(Contract):
    type: Literal["folder"] = "folder"
    path: Annotated[str, Field(min_length=1)]


class Files(Contract):
    type: Literal["files"] = "files"
    files: dict[str, Annotated[str, Field(pattern="^f_")]]


class Thing(Contract):
    weight: float = 1.0
    count: int = 0
    flag: bool = False
    source: Folder | Files | None = Field(None, discriminator="type")
    tags: list[Annotated[str, Field(max_length=3)]] = Field(default_factory=list)
    layers: Literal["all"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = "all"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.fixture
def ready() -> dict[str, Any]:
    return {"answer": True}


@pytest.fixture
def client(ready: dict[str, Any]) -> Iterator[TestClient]:
    def check() -> bool:
        if isinstance(ready["answer"], Exception):
            raise ready["answer"]
        return ready["answer"]

    app = make_http_app(
        title="Test",
        lifespan=lifespan,
        registry=CollectorRegistry(),
        checks={"part": check},
        limits=BodyLimits(10_000),
    )
    router = APIRouter(prefix="/v1", route_class=StrictJSONRoute, dependencies=[Depends(bearer_token)])

    @router.post("/things")
    def create(thing: Thing) -> Thing:
        return thing

    @router.get("/things")
    def read() -> list[Thing]:
        return []

    @router.get("/busy")
    def busy() -> None:
        raise RateLimited("too many requests")

    @router.get("/broken")
    def broken(request: Request) -> None:
        raise ValueError("internal detail")

    add_routes(app, router)
    with TestClient(app, raise_server_exceptions=False) as running:
        yield running


def post(client: TestClient, content: bytes | str, content_type: str = "application/json") -> Any:
    return client.post("/v1/things", content=content, headers={**KEY, "Content-Type": content_type})


FIELDS = [
    ('{"weight": "0.5"}', 422, "invalid_request", "weight"),
    ('{"weight": true}', 422, "invalid_request", "weight"),
    ('{"weight": NaN}', 422, "non_finite_number", "weight"),
    ('{"count": 1.5}', 422, "invalid_request", "count"),
    ('{"count": true}', 422, "invalid_request", "count"),
    ('{"flag": 1}', 422, "invalid_request", "flag"),
    ('{"is_admin": true}', 422, "unknown_field", "is_admin"),
    ('{"source": {"type": "folder"}}', 422, "missing_field", "source.path"),
    ('{"source": {"type": "folder", "path": ""}}', 422, "invalid_request", "source.path"),
    ('{"source": {"type": "folder", "path": "x", "files": {}}}', 422, "unknown_field", "source.files"),
    ('{"source": {"type": "files", "files": {"a": "f_1", "b": "x"}}}', 422, "invalid_request", "source.files.b"),
    ('{"source": {"type": "socket"}}', 422, "invalid_request", "source.type"),
    ('{"source": {}}', 422, "missing_field", "source.type"),
    ('{"layers": "none"}', 422, "invalid_request", "layers"),
    ('{"layers": []}', 422, "invalid_request", "layers"),
    ('{"layers": [0, -1]}', 422, "invalid_request", "layers.1"),
    ('{"tags": ["a", "long"]}', 422, "invalid_request", "tags.1"),
    ('{"weight": 1, "weight": 2}', 400, "duplicate_key", None),
    ("[]", 422, "invalid_request", None),
    ("null", 422, "invalid_request", None),
    ("", 422, "missing_field", None),
    ("{", 400, "malformed_body", None),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), FIELDS, ids=[row[0] for row in FIELDS])
def test_a_refusal_names_the_field(client: TestClient, body: str, status: int, code: str, param: str | None) -> None:
    error = error_of(post(client, body), status)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


@pytest.mark.parametrize(
    "body",
    [
        '{"weight": "hunter2"}',
        '{"source": {"type": "hunter2"}}',
        '{"tags": ["hunter2"]}',
        '{"count": "hunter2"}',
        "hunter2",
    ],
)
def test_a_refusal_never_repeats_the_value(client: TestClient, body: str) -> None:
    answer = post(client, body)
    error_of(answer, answer.status_code)
    assert "hunter2" not in answer.text


def test_a_unions_error_is_about_the_type_that_was_sent(client: TestClient) -> None:
    assert "at least 1 item" in error_of(post(client, '{"layers": []}'), 422)["message"]
    assert "'all'" in error_of(post(client, '{"layers": "none"}'), 422)["message"]


def test_a_very_long_field_name_is_truncated(client: TestClient) -> None:
    assert len(post(client, f'{{"{"x" * 9000}": 1}}').content) < 2000


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "json", ""]
)
def test_other_content_types(client: TestClient, content_type: str) -> None:
    error = error_of(post(client, "{}", content_type), 415)
    assert error["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_content_types(client: TestClient, content_type: str) -> None:
    assert post(client, "{}", content_type).status_code == 200


def test_authentication_comes_before_validation(client: TestClient) -> None:
    for content, content_type in ((b"{", "application/json"), (b"x", "text/plain"), (b"", "application/json")):
        answer = client.post("/v1/things", content=content, headers={"Content-Type": content_type})
        assert error_of(answer, 401)["code"] == "invalid_api_key"


def test_the_frameworks_own_errors_are_enveloped(client: TestClient) -> None:
    assert error_of(client.get("/nowhere"), 404)["code"] == "not_found"
    assert error_of(client.get("/v1/things/"), 404)["code"] == "not_found"  # no redirects
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = client.request(method, "/v1/things")
        assert error_of(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["allow"] == "GET, POST"
    busy = client.get("/v1/busy", headers=KEY)
    assert error_of(busy, 429)["code"] == "rate_limited"
    assert busy.headers["retry-after"]


def test_an_unexpected_error_keeps_its_detail(client: TestClient) -> None:
    answer = client.get("/v1/broken", headers={**KEY, "X-Request-ID": "my-request-1"})
    assert error_of(answer, 500)["request_id"] == "my-request-1"
    assert "detail" not in answer.text


@pytest.mark.parametrize("given", ["abcdefgh", "A-Z_0-9-" * 8])
def test_a_clients_request_id_is_kept(client: TestClient, given: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["short", "x" * 65, "has space", "in\tjection", "caf\xe9caf\xe9", "a;b;c;d;e"])
def test_other_request_ids_are_replaced(client: TestClient, given: str) -> None:
    echoed = client.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")}).headers["x-request-id"]
    assert echoed != given
    assert echoed.startswith("req_")


def test_request_ids_differ(client: TestClient) -> None:
    assert len({client.get("/healthz").headers["x-request-id"] for _ in range(20)}) == 20


def test_bodies_are_limited_with_and_without_a_length(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b"[", b"1," * 4000, b"1," * 4000, b"1]")

    assert post(client, b'{"tags": [' + b" " * 9_980 + b"]}").status_code == 200
    for content in (b"x" * 10_001, chunks()):
        assert error_of(post(client, content), 413)["code"] == "payload_too_large"


@pytest.mark.parametrize("answer", [False, RuntimeError("a secret"), ConnectionError()])
def test_readiness_names_the_part_that_fails(client: TestClient, ready: dict[str, Any], answer: Any) -> None:
    assert client.get("/readyz").json() == {"status": "ok", "part": "ok"}
    ready["answer"] = answer
    assert error_of(client.get("/readyz"), 503)["message"] == "not ready: part"
    assert client.get("/healthz").status_code == 200


def test_secrets_are_compared_whatever_the_key() -> None:
    key_id, presented = split_token("ak_" + "0" * 16 + "_" + "a" * 43)
    assert (key_id, same_secret(presented, presented)) == ("0" * 16, True)
    assert not same_secret(presented, None)
    unknown_id, of_nonsense = split_token("nonsense")
    assert unknown_id == ""
    assert not same_secret(of_nonsense, None)


def test_a_token_is_read_from_one_header_only() -> None:
    def request(*values: str) -> Request:
        headers = [(b"authorization", value.encode()) for value in values]
        return Request({"type": "http", "headers": headers, "method": "GET", "path": "/"})

    assert bearer_token(request("Bearer abc")) == "abc"
    for values in ((), ("Bearer",), ("Bearer  abc",), ("Basic abc",), ("Bearer abc", "Bearer abc"), ("Bearer a b",)):
        with pytest.raises(Unauthenticated):
            bearer_token(request(*values))
