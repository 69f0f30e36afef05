"""Bad input to a decoder, by the rows of docs/bad-input.md."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from armature.contracts.tenants import TenantLimits
from tests.support.serving import DecoderProcess

CHAT = '{"model": "care", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1'


def refused(response: httpx.Response, *expected: tuple[int, str]) -> dict[str, Any]:
    """The envelope, whose status and code are among the expected."""
    found: dict[str, Any] = response.json()["error"]
    assert (response.status_code, found["code"]) in expected, found
    assert found["request_id"] == response.headers["x-request-id"]
    return found


def post(http: httpx.Client, body: str | bytes, **headers: str) -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    return http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json", **headers})


def chat(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "care", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}
    return http.post("/v1/chat/completions", json=body)


def text(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"model": "care", "prompt": "hi", "max_tokens": 1, **fields})


@pytest.mark.bad_input(1, 2, 20)
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ['"preference": {"empathy": %s}', '"temperature": %s', '"logit_bias": {"5": %s}'])
def test_non_finite_numbers_are_refused(http: httpx.Client, field: str, value: str) -> None:
    refused(post(http, f"{CHAT}, {field % value}}}"), (422, "non_finite_number"))


@pytest.mark.bad_input(3)
def test_a_refusal_repeats_no_value(http: httpx.Client) -> None:
    response = post(http, f'{CHAT}, "user": "my secret", "seed": NaN, "stop": ["my secret", 7]}}')
    refused(response, (422, "non_finite_number"))
    assert "secret" not in response.text


@pytest.mark.bad_input(4)
def test_preferences_of_another_shape_are_refused(http: httpx.Client) -> None:
    refused(chat(http, preference=[0.2, 0.8]), (422, "invalid_request"))
    assert refused(chat(http, preference={"charm": 1.0}), (422, "unknown_attribute"))["param"] == "preference.charm"
    twice = '"preference": {"empathy": 1.0, "empathy": 0.5}'
    assert refused(post(http, f"{CHAT}, {twice}}}"), (400, "duplicate_key"))


@pytest.mark.bad_input(5)
def test_weights_are_normalised_and_may_not_all_be_zero(http: httpx.Client) -> None:
    refused(chat(http, preference={"empathy": -1.0}), (422, "invalid_request"))
    refused(chat(http, preference={"empathy": 0.0}), (422, "zero_preference"))
    applied = chat(http, preference={"empathy": 3.0, "helpfulness": 9.0}).json()["alignment"]["preference"]
    assert applied == {"empathy": 0.25, "truthfulness": 0.0, "helpfulness": 0.75}


@pytest.mark.bad_input(6)
@pytest.mark.parametrize("value", ['"0.5"', "true", "[0.5]", "null"])
def test_numbers_of_another_type_are_refused(http: httpx.Client, value: str) -> None:
    refused(post(http, f'{CHAT}, "preference": {{"empathy": {value}}}}}'), (422, "invalid_request"))


@pytest.mark.bad_input(7)
def test_duplicate_keys_are_refused(http: httpx.Client) -> None:
    refused(post(http, f'{CHAT}, "model": "other"}}'), (400, "duplicate_key"))


@pytest.mark.bad_input(8)
def test_an_integer_of_400_digits_is_refused(http: httpx.Client) -> None:
    refused(post(http, f'{CHAT}, "seed": {"9" * 400}}}'), (422, "invalid_request"))


@pytest.mark.bad_input(9)
@pytest.mark.parametrize("body", [f'{CHAT}, "seed": {"9" * 5000}}}', "[" * 200_000, '{"a":' * 100_000])
def test_bodies_beyond_the_parsers_bounds_are_refused(http: httpx.Client, body: str) -> None:
    refused(post(http, body), (400, "malformed_body"), (422, "invalid_request"))


@pytest.mark.bad_input(10, 11)
@pytest.mark.parametrize("bad", ["\\ud800", "\\u0000"])
def test_surrogates_and_nul_in_text_are_refused(http: httpx.Client, bad: str) -> None:
    for body in (
        f'{{"model": "care", "messages": [{{"role": "user", "content": "a{bad}b"}}]}}',
        f'{CHAT}, "stop": "{bad}"}}',
        f'{CHAT}, "user": "{bad}"}}',
    ):
        refused(post(http, body), (422, "invalid_request"))


@pytest.mark.bad_input(12)
@pytest.mark.parametrize("field", ["is_admin", "tenant_id", "status", "fence", "cache_scope", "messages2"])
def test_unknown_fields_are_named(http: httpx.Client, field: str) -> None:
    assert refused(chat(http, **{field: True}), (422, "unknown_field"))["param"] == field


@pytest.mark.bad_input(13, 14)
def test_only_utf_8_is_read(http: httpx.Client) -> None:
    whole = f"{CHAT}}}"
    refused(post(http, whole.encode("utf-16")), (400, "malformed_body"))
    refused(post(http, whole.replace("hi", "caf").encode() + b"\xe9"), (400, "malformed_body"))
    refused(post(http, whole.encode().replace(b"hi", b"caf\xe9")), (400, "malformed_body"))
    assert post(http, b"\xef\xbb\xbf" + whole.encode()).status_code == 200  # a byte-order mark is accepted


@pytest.mark.bad_input(15)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_other_content_types_are_refused(http: httpx.Client, kind: str) -> None:
    refused(post(http, f"{CHAT}}}", **{"Content-Type": kind}), (415, "unsupported_media_type"))


@pytest.mark.bad_input(16)
def test_large_bodies_are_refused_with_and_without_a_length(http: httpx.Client) -> None:
    refused(post(http, b" " * (1 << 21)), (413, "payload_too_large"))
    chunks = (b" " * (1 << 16) for _ in range(64))
    response = http.post("/v1/completions", content=chunks, headers={"Content-Type": "application/json"})
    refused(response, (413, "payload_too_large"))


@pytest.mark.bad_input(17)
@pytest.mark.parametrize("body", ["", "null", "[]", '"hi"', "7"])
def test_bodies_that_are_no_object_are_refused(http: httpx.Client, body: str) -> None:
    refused(post(http, body), (400, "malformed_body"), (422, "invalid_request"), (422, "missing_field"))


@pytest.mark.bad_input(18)
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-1, 1e9, -0.01, 2.01]),
        ("top_p", [0, 1.1, -1]),
        ("top_k", [-5, 2**31, 0.5]),
        ("min_p", [-0.1, 1, 2]),
        ("n", [0, -1, 9, 10**9]),
        ("max_tokens", [0, -1, 2**40]),
        ("seed", [-1, 2**63, 2**64]),
        ("top_logprobs", [-1, 21]),
    ],
)
def test_sampling_settings_out_of_range_are_named(http: httpx.Client, field: str, values: list[float]) -> None:
    for value in values:
        fields = {field: value, **({"logprobs": True} if field == "top_logprobs" else {})}
        assert refused(chat(http, **fields), (422, "invalid_request"))["param"] == field


@pytest.mark.bad_input(19)
@pytest.mark.parametrize("stop", ["", [""], ["a"] * 10_000, "x" * 900_000, ["a", 7], {"a": 1}, 7])
def test_stop_strings_beyond_their_bounds_are_refused(http: httpx.Client, stop: Any) -> None:
    assert refused(chat(http, stop=stop), (422, "invalid_request"))["param"].startswith("stop")


@pytest.mark.bad_input(20)
@pytest.mark.parametrize("bias", [{"259": 1}, {"4294967296": 1}, {"1e1": 1}, {"05": 1}, {"": 1}, {"5": 1e9}])
def test_biases_on_unknown_tokens_are_refused(http: httpx.Client, bias: dict[str, float]) -> None:
    assert refused(chat(http, logit_bias=bias), (422, "invalid_request"))["param"].startswith("logit_bias")


@pytest.mark.bad_input(21)
@pytest.mark.parametrize("prompt", ["x" * 300, "a" * 900_000, "\u0301" * 300_000, "\u200b" * 300_000, [5] * 200_000])
def test_prompts_beyond_the_context_are_refused(http: httpx.Client, prompt: Any) -> None:
    assert refused(text(http, prompt=prompt), (400, "context_length_exceeded"))["param"] == "prompt"
    if isinstance(prompt, str):
        refused(chat(http, messages=[{"role": "user", "content": prompt}]), (400, "context_length_exceeded"))


@pytest.mark.bad_input(22)
@pytest.mark.parametrize("marker", ["<bos>", "<eos>", "<pad>", "[assistant]", "<|im_start|>assistant", "</s>"])
def test_special_tokens_in_text_are_text(http: httpx.Client, marker: str) -> None:
    plain = chat(http, messages=[{"role": "user", "content": "-" * len(marker)}]).json()["usage"]["prompt_tokens"]
    marked = chat(http, messages=[{"role": "user", "content": marker}]).json()["usage"]["prompt_tokens"]
    assert marked == plain  # a token a byte: none of them became one special token
    echoed = text(http, prompt=marker, echo=True, max_tokens=0, logprobs=0).json()["choices"][0]
    assert echoed["logprobs"]["tokens"] == list(marker)


@pytest.mark.bad_input(23)
@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": {"text": "x"}}],
        [{"role": "user", "content": []}],
        [{"role": "user"}],
        [{"role": "user", "content": "x"}] * 10_000,
        "hi",
        {},
    ],
    ids=lambda messages: json.dumps(messages)[:40],
)
def test_malformed_dialogues_are_refused(http: httpx.Client, messages: Any) -> None:
    refused(chat(http, messages=messages), (422, "invalid_request"), (422, "missing_field"))


@pytest.mark.bad_input(24)
@pytest.mark.parametrize("field", ["chat_template", "chat_template_kwargs"])
def test_a_template_in_a_request_is_refused(http: httpx.Client, field: str) -> None:
    assert refused(chat(http, **{field: {"a": "{{ 7 }}"}}), (422, "unsupported_field"))["param"] == field


@pytest.mark.bad_input(25)
@pytest.mark.parametrize(
    ("field", "values"),
    [("guidance_weight", [-0.1, 33, 1e300]), ("safe_set_delta", [-1, 101]), ("harm_scale", [-1, 101, 1e300])],
)
def test_guidance_out_of_range_is_named(http: httpx.Client, field: str, values: list[float]) -> None:
    for value in values:
        assert refused(chat(http, **{field: value}), (422, "invalid_request"))["param"] == field


@pytest.mark.bad_input(26)
@pytest.mark.parametrize(
    "name", ["calm", "CARE", "../care", "care/", "сare", "care ", "care@nobody", "%63are", "x" * 256]
)
def test_unknown_and_foreign_models_are_not_found(http: httpx.Client, name: str) -> None:
    assert refused(chat(http, model=name), (404, "model_not_found"))["param"] == "model"
    assert refused(text(http, model=name), (404, "model_not_found"))["param"] == "model"


@pytest.mark.bad_input(26)
def test_a_model_name_of_10_kb_is_refused(http: httpx.Client) -> None:
    refused(chat(http, model="x" * 10_000), (422, "invalid_request"))


@pytest.mark.bad_input(57)
def test_malformed_names_look_like_foreign_ones(http: httpx.Client) -> None:
    foreign = http.get("/v1/models/calm")
    for name in ("nobody", "%2e%2e%2f", "..%2fcalm", "x" * 10_000, "a%00b", "%F0%9F%92%A9"):
        response = http.get(f"/v1/models/{name}")
        found, expected = refused(response, (404, "model_not_found"), (404, "not_found")), foreign.json()["error"]
        if found["code"] == "model_not_found":
            assert {**found, "request_id": None} == {**expected, "request_id": None}


@pytest.mark.bad_input(59)
def test_wrong_keys_are_refused_alike(decoder_process: DecoderProcess, token: str) -> None:
    _, id, secret = token.split("_", 2)
    wrong = [
        {},
        *({"Authorization": value} for value in ("Bearer", f"Bearer  {token}", f"Basic {token}", token)),
        {"Authorization": f"Bearer ak_{id}_{secret[::-1]}"},
        {"Authorization": f"Bearer ak_{'0' * 16}_{secret}"},
        {"Authorization": f"Bearer {'x' * 10_000}"},
        {"api-key": token},
    ]
    url = f"{decoder_process.url}/v1/chat/completions"
    bodies = set()
    for headers in wrong:
        response = httpx.post(url, headers=headers, json={})
        found = refused(response, (401, "invalid_api_key"))
        assert response.headers["www-authenticate"] == "Bearer"
        bodies.add(found["message"])
    assert len(bodies) == 2  # the form is wrong, or the key is; never which part of it
    assert httpx.post(f"{url}?api_key={token}", json={}).status_code == 401
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert httpx.post(url, headers=twice, json={}).status_code == 401
    lower = {"Authorization": f"bearer {token}"}
    assert httpx.get(f"{decoder_process.url}/v1/models", headers=lower).status_code == 200
    log = decoder_process.log.read_text()
    assert secret not in log
    assert secret[::-1] not in log


@pytest.mark.bad_input(60)
def test_keys_without_the_scope_are_refused(decoder_process: DecoderProcess) -> None:
    installation = decoder_process.installation
    reader = installation.add_key("acme", scopes=["jobs:read", "jobs:write", "platform"])
    installation.publish()
    time.sleep(0.5)
    url, headers = f"{decoder_process.url}/v1/models", {"Authorization": f"Bearer {reader}"}
    refused(httpx.get(url, headers=headers), (403, "missing_scope"))


@pytest.mark.bad_input(61)
def test_a_burst_is_throttled_with_a_retry_after(decoder_process: DecoderProcess) -> None:
    installation = decoder_process.installation
    installation.add_tenant("thrifty")
    installation._update("thrifty", limits=TenantLimits(requests_per_minute=4, tokens_per_minute=50))
    installation.point("thrifty", "care", installation.tenants["acme"].models[0].manifest)
    key = installation.add_key("thrifty")
    installation.publish()
    time.sleep(0.5)
    while 60 - time.time() % 60 < 8:  # the counts begin anew with each minute
        time.sleep(0.5)
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=key, max_retries=0) as client:
        asking = client.completions.with_raw_response
        with pytest.raises(openai.PermissionDeniedError) as never:
            asking.create(model="care", prompt="hi", max_tokens=100)
        assert never.value.code == "quota_exceeded"
        told = [asking.create(model="care", prompt="hi", max_tokens=10).headers for _ in range(3)]
        assert [headers["x-ratelimit-remaining-requests"] for headers in told] == ["2", "1", "0"]
        assert (told[0]["x-ratelimit-limit-tokens"], told[0]["x-ratelimit-remaining-tokens"]) == ("50", "38")
        assert told[0]["x-ratelimit-reset-tokens"].endswith("s")
        with pytest.raises(openai.RateLimitError) as burst:
            asking.create(model="care", prompt="hi", max_tokens=1)
    assert 1 <= int(burst.value.response.headers["retry-after"]) <= 60
    assert burst.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    installation.drop("thrifty", "care")
    installation.publish()


@pytest.mark.bad_input(62)
def test_large_headers_and_other_methods_are_refused(http: httpx.Client) -> None:
    for bad in ("x" * 200, "a b", "<script>", "short"):
        response = http.get("/v1/models", headers={"x-request-id": bad})
        assert response.headers["x-request-id"] != bad
    assert http.get("/v1/models", headers={"x-request-id": "abcd-1234"}).headers["x-request-id"] == "abcd-1234"
    refused(http.get("/v1/models", headers={"x-long": "y" * 20_000}), (431, "headers_too_large"))
    for method in ("GET", "PUT", "DELETE", "TRACE", "PATCH"):
        response = http.request(method, "/v1/completions")
        refused(response, (405, "method_not_allowed"))
        assert response.headers["allow"] == "POST"
    response = http.get("/v1/completions", headers={"X-HTTP-Method-Override": "POST"})
    refused(response, (405, "method_not_allowed"))
