"""Bad input to the decoder is answered with an envelope that names the field, and the decoder stays up."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from armature.contracts.preferences import GuidanceBounds
from tests.support.processes import wait_until
from tests.support.serving import DecoderProcess, PublishedBundle

CHAT = {"model": "care", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert body.keys() == {"error"}, body
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    result: dict[str, Any] = body["error"]
    return result


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


@pytest.mark.bad_input(4, 5, 6, 12, 18, 19, 20, 23, 24, 25)
@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"temperature": -1}, 422, "invalid_request", "temperature"),
        ({"temperature": 1e9}, 422, "invalid_request", "temperature"),
        ({"temperature": "0.5"}, 422, "invalid_request", "temperature"),
        ({"temperature": True}, 422, "invalid_request", "temperature"),
        ({"top_p": 0}, 422, "invalid_request", "top_p"),
        ({"top_p": 1.1}, 422, "invalid_request", "top_p"),
        ({"top_k": -5}, 422, "invalid_request", "top_k"),
        ({"min_p": 1}, 422, "invalid_request", "min_p"),
        ({"n": 0}, 422, "invalid_request", "n"),
        ({"n": 10**9}, 422, "invalid_request", "n"),
        ({"max_tokens": 0}, 422, "invalid_request", "max_tokens"),
        ({"max_tokens": -1}, 422, "invalid_request", "max_tokens"),
        ({"max_tokens": 10**8}, 400, "context_length_exceeded", "messages"),
        ({"max_completion_tokens": 3}, 422, "invalid_request", None),
        ({"seed": 2**64}, 422, "invalid_request", "seed"),
        ({"stop": ""}, 422, "invalid_request", "stop"),
        ({"stop": ["a"] * 5}, 422, "invalid_request", "stop"),
        ({"stop": "x" * 65}, 422, "invalid_request", "stop"),
        ({"preference": {"charm": 1.0}}, 422, "unknown_attribute", "preference.charm"),
        ({"preference": {"empathy": -1.0}}, 422, "invalid_request", "preference.empathy"),
        ({"preference": {"empathy": 0.0}}, 422, "zero_preference", "preference"),
        ({"preference": {}}, 422, "zero_preference", "preference"),
        ({"preference": [0.2, 0.8]}, 422, "invalid_request", "preference"),
        ({"preference": {"empathy": "1"}}, 422, "invalid_request", "preference.empathy"),
        ({"guidance_weight": -0.1}, 422, "invalid_request", "guidance_weight"),
        ({"guidance_weight": 33}, 422, "invalid_request", "guidance_weight"),
        ({"safe_set_delta": -1}, 422, "invalid_request", "safe_set_delta"),
        ({"stream_options": {"include_usage": True}}, 422, "invalid_request", "stream_options"),
        ({"stream": True, "stream_options": {"include": 1}}, 422, "unknown_field", "stream_options.include"),
        ({"top_logprobs": 2}, 422, "invalid_request", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 422, "invalid_request", "top_logprobs"),
        ({"tools": []}, 422, "unsupported_field", "tools"),
        ({"logit_bias": {"5": 101}}, 422, "invalid_request", "logit_bias.5"),
        ({"logit_bias": {"5": True}}, 422, "invalid_request", "logit_bias.5"),
        ({"logit_bias": {"-1": 1}}, 422, "invalid_request", "logit_bias.-1"),
        ({"logit_bias": {"259": 1}}, 422, "invalid_request", "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, 422, "invalid_request", "logit_bias"),
        ({"logit_bias": [5]}, 422, "invalid_request", "logit_bias"),
        ({"safe_set_mode": "lax"}, 422, "invalid_request", "safe_set_mode"),
        ({"harm_scale": -1}, 422, "invalid_request", "harm_scale"),
        ({"harm_scale": 1e9}, 422, "invalid_request", "harm_scale"),
        ({"harm_scale": 0.25}, 422, "harm_scale_not_served", "harm_scale"),
        ({"logprob_parts": True}, 422, "invalid_request", "logprob_parts"),
        ({"chat_template": "{{ x }}"}, 422, "unsupported_field", "chat_template"),
        ({"chat_template_kwargs": {}}, 422, "unsupported_field", "chat_template_kwargs"),
        ({"frequency_penalty": 0.5}, 422, "invalid_request", "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, 422, "invalid_request", "response_format.type"),
        ({"tenant_id": "ten_zen"}, 422, "unknown_field", "tenant_id"),
        ({"messages": []}, 422, "invalid_request", "messages"),
        (message(role="robot"), 422, "invalid_request", "messages.0.role"),
        (message(role="assistant"), 422, "invalid_request", "messages"),
        (message(content=None), 422, "invalid_request", "messages.0.content"),
        (message(content={"text": "x"}), 422, "invalid_request", "messages.0.content"),
        (message(content=[{"type": "image_url"}]), 422, None, None),
        ({"messages": [{"role": "user", "content": "x"}] * 2000}, 422, "invalid_request", "messages"),
        ({"model": "x" * 10_000}, 422, "invalid_request", "model"),
        ({"model": ""}, 422, "invalid_request", "model"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_wrong_field_is_named(
    http: httpx.Client, changes: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, **changes})
    found = error(response)
    assert response.status_code == status, found
    assert code in (None, found["code"]), found
    assert param in (None, found["param"]), found


TEXT = {"model": "care", "prompt": "hi", "max_tokens": 2}


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"prompt": ""}, 422, "invalid_request", "prompt"),
        ({"prompt": []}, 422, "invalid_request", "prompt"),
        ({"prompt": ["a", ""]}, 422, "invalid_request", "prompt.1"),
        ({"prompt": ["a", [5]]}, 422, "invalid_request", "prompt.1"),
        ({"prompt": ["a"] * 65}, 422, "invalid_request", "prompt"),
        ({"prompt": [[5], []]}, 422, "invalid_request", "prompt.1"),
        ({"prompt": [5, -1]}, 422, "invalid_request", "prompt.1"),
        ({"prompt": [5, 6.5]}, 422, "invalid_request", "prompt.1"),
        ({"prompt": [True]}, 422, "invalid_request", "prompt.0"),
        ({"prompt": [5, 259]}, 422, "invalid_request", "prompt"),
        ({"prompt": [[5], [2**31 - 1]]}, 422, "invalid_request", "prompt.1"),
        ({"prompt": [5] * 257}, 400, "context_length_exceeded", "prompt"),
        ({"prompt": ["a", "x" * 300]}, 400, "context_length_exceeded", "prompt.1"),
        ({"prompt": {"text": "a"}}, 422, "invalid_request", "prompt"),
        ({"prompt": None}, 422, "invalid_request", "prompt"),
        ({"max_tokens": 0}, 422, "invalid_request", "max_tokens"),
        ({"max_tokens": 10**8}, 400, "context_length_exceeded", "prompt"),
        ({"logprobs": 21}, 422, "invalid_request", "logprobs"),
        ({"logprobs": True}, 422, "invalid_request", "logprobs"),
        ({"logprob_parts": True}, 422, "invalid_request", "logprob_parts"),
        ({"echo": "yes"}, 422, "invalid_request", "echo"),
        ({"suffix": "x"}, 422, "unsupported_field", "suffix"),
        ({"best_of": 2}, 422, "unsupported_field", "best_of"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_wrong_field_of_a_text_completion_is_named(
    http: httpx.Client, changes: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    response = http.post("/v1/completions", json={**TEXT, **changes})
    found = error(response)
    assert (response.status_code, found["code"]) == (status, code), found
    assert param in (None, found["param"]), found


@pytest.mark.parametrize(
    ("changes", "param", "reason"),
    [
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"stop": "x" * 65}, "stop", "at most 64 characters"),
        ({"stop": ["a", "x" * 65]}, "stop.1", "at most 64 characters"),
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": 7}, "stop", "valid string"),
        (message(content=[]), "messages.0.content", "at least 1 item"),
        (message(content=[{"type": "image_url"}]), "messages.0.content.0.type", "'text'"),
        (message(content=[{"type": "text"}]), "messages.0.content.0.text", "required"),
    ],
)
def test_the_reason_names_the_form_that_was_sent(
    http: httpx.Client, changes: dict[str, Any], param: str, reason: str
) -> None:
    found = error(http.post("/v1/chat/completions", json={**CHAT, **changes}))
    assert (found["param"], reason in found["message"]) == (param, True), found


@pytest.mark.bad_input(1, 2, 7, 9, 10, 14, 16, 17)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "care", "messages": [{"role": "user", "content": "hi"}], "preference": {"empathy": NaN}}', 422),
        (b'{"model": "care", "messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}', 422),
        (b'{"model": "care", "model": "other", "messages": [{"role": "user", "content": "hi"}]}', 400),
        (b'{"model": "care", "messages": [{"role": "user", "content": "\\ud800"}]}', 422),
        (b'{"model": "care", "messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 200_000, 400),
        (b"", 400),
        (b"null", 422),
        (b"[]", 422),
        (b'{"model": "caf\xe9"}', 400),
        (b" " * (1 << 21), 413),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_a_body_that_is_not_strict_json_is_refused(http: httpx.Client, body: bytes, status: int) -> None:
    response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    found = error(response)
    if status in (400, 422):
        assert response.status_code in (400, 422), found
    else:
        assert response.status_code == status, found


@pytest.mark.parametrize(
    "fields",
    [
        {
            "user": "user-1",
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "n": 1,
            "logit_bias": None,
            "tools": None,
        },
        {"response_format": {"type": "text"}, "max_completion_tokens": 2},
        {"messages": [{"role": "developer", "content": "be kind"}, *CHAT["messages"]], "stop": None},
        {"messages": [{"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}]}]},
        {"preference": {"empathy": 1e308, "truthfulness": 1e308}, "stop": ["a", "b"]},
        {"preference": {"empathy": 1e-9}, "top_k": 2**31 - 1},
        {"preference": None, "guidance_weight": None, "safe_set_delta": None, "temperature": None},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_harmless_fields_are_accepted(http: httpx.Client, fields: dict[str, Any]) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, **fields})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "x" * 10_000},
        {"Authorization": "Basic abc"},
    ],
    ids=["none", "empty", "long", "basic"],
)
def test_no_key_is_401_before_the_body_is_judged(decoder_process: DecoderProcess, headers: dict[str, str]) -> None:
    response = httpx.post(f"{decoder_process.url}/v1/chat/completions", content=b"{", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error(response)


def test_a_key_needs_the_scope_and_must_not_be_expired(decoder_process: DecoderProcess, token: str) -> None:
    installation = decoder_process.installation
    keys = {
        403: installation.add_key("acme", scopes=["jobs:read"]),
        401: installation.add_key("acme", expires_at=int(time.time()) - 1),
        200: installation.add_key("acme", expires_at=int(time.time()) + 3600),
    }
    installation.publish()
    time.sleep(0.5)
    for status, key in keys.items():
        response = httpx.get(f"{decoder_process.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)],
)
def test_an_unknown_route_or_method_is_an_envelope(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    error(response)


@pytest.mark.bad_input(21)
def test_a_huge_prompt_is_refused_unread(http: httpx.Client) -> None:
    for text in ("x" * 900_000, "\u0301" * 300_000, "\u200b" * 300_000):
        started = time.monotonic()
        response = http.post("/v1/completions", json={"model": "care", "prompt": text})
        found = error(response)
        assert (found["code"], found["param"]) == ("context_length_exceeded", "prompt")
        assert time.monotonic() - started < 2


def test_a_profiles_bounds_hold_for_requests(
    decoder_process: DecoderProcess, http: httpx.Client, serving_bundles: dict[str, PublishedBundle]
) -> None:
    installation = decoder_process.installation
    bounds = GuidanceBounds(max_guidance_weight=4.0, max_safe_set_delta=7.0)
    manifest = serving_bundles["one"].manifest.model_copy(update={"bounds": bounds})
    installation.point("acme", "bounded", manifest)
    installation.publish()
    wait_until(lambda: http.get("/v1/models/bounded").status_code == 200)
    for fields, status in (
        ({"guidance_weight": 4.0, "safe_set_delta": 7.0}, 200),
        ({"guidance_weight": 4.5}, 422),
        ({"safe_set_delta": 7.5}, 422),
    ):
        response = http.post("/v1/chat/completions", json={**CHAT, "model": "bounded", **fields})
        assert response.status_code == status, response.text
        if status == 422:
            assert (error(response)["code"], error(response)["param"]) == ("out_of_bounds", next(iter(fields)))
    installation.drop("acme", "bounded")
    installation.publish()


def test_the_decoder_is_still_there(http: httpx.Client) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
