"""Asking a chat endpoint: outages are waited out, refusals passed on, and what is no completion is named."""

from __future__ import annotations

import json

import pytest

from armature.errors import EndpointUnavailable, InvalidRequest
from armature.settings import EndpointSettings
from armature_worker.models.chat_endpoint import ChatEndpoint
from tests.support.scripted_server import Answer, run_script


def chat(text: object, reason: str = "stop") -> Answer:
    return Answer(body=json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode())


def endpoint(url: str, pauses: list[float] | None = None) -> ChatEndpoint:
    settings = EndpointSettings.model_validate({"url": url, "api_key": "sk-1", "concurrency": 1})
    return ChatEndpoint(settings, "grader", "spec.judges.0", (pauses if pauses is not None else []).append)


def ask(chat_endpoint: ChatEndpoint) -> str:
    return chat_endpoint.complete([[{"role": "user", "content": "hi"}]], [{"max_tokens": 5}])[0].text


def test_outages_are_waited_out() -> None:
    pauses: list[float] = []
    answers = [Answer(status=0), Answer(status=429, headers={"retry-after": "7"}), Answer(status=503), chat("fine")]
    with run_script(answers) as server:
        assert ask(endpoint(server.url, pauses)) == "fine"
    assert pauses == [1.0, 7.0, 4.0]
    assert {request.path for request in server.requests} == {"/chat/completions"}


def test_an_endpoint_that_stays_away_is_unavailable() -> None:
    with (
        run_script([Answer(status=500)]) as server,
        pytest.raises(EndpointUnavailable, match="answers with 500, 6 times") as caught,
    ):
        ask(endpoint(server.url))
    assert caught.value.param == "spec.judges.0"
    assert caught.value.retryable


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": "x"}]}'])
def test_what_is_no_completion_is_named(body: bytes) -> None:
    with run_script([Answer(body=body)]) as server, pytest.raises(EndpointUnavailable, match="no chat completion"):
        ask(endpoint(server.url))


def test_a_refusal_is_passed_on_in_the_endpoint_s_words() -> None:
    refusal = Answer(status=404, body=b'{"error": {"message": "no model grader for key sk-1"}}')
    with (
        run_script([refusal]) as server,
        pytest.raises(InvalidRequest, match=r"404: no model grader for key \*\*\*$"),
    ):
        ask(endpoint(server.url))
    assert len(server.requests) == 1
