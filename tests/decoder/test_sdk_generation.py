"""Guided answers through the SDK and the ``generate`` command."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from armature import client as sdk
from armature.client import AsyncClient, Client
from armature_cli.main import app
from tests.support.processes import wait_until
from tests.support.serving import DecoderProcess


def test_the_sdk_returns_guided_answers_whole_and_streamed(decoder_process: DecoderProcess) -> None:
    token = decoder_process.installation.add_key("acme")
    decoder_process.installation.publish()
    messages = [{"role": "user", "content": "hi"}]
    options: dict[str, Any] = {"max_tokens": 8, "seed": 3, "preference": {"empathy": 1.0}}
    with Client("http://127.0.0.1:1", token, decoder_url=decoder_process.url) as client:
        wait_until(lambda: _served(client))
        whole = client.chat.completions.create(model="care", messages=messages, **options)
        pieces = list(client.chat.completions.stream(model="care", messages=messages, **options))
        assert (
            "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole.choices[0].message.content
        )
        assert whole.alignment is not None
        assert whole.alignment.preference == {"empathy": 1.0, "truthfulness": 0.0, "helpfulness": 0.0}
        text = client.completions.create(model="care", prompt="hi", **options)
        streamed = client.completions.stream(model="care", prompt="hi", **options)
        assert "".join(p.choices[0].text for p in streamed if p.choices) == text.choices[0].text
        with pytest.raises(sdk.NotFoundError):
            list(client.chat.completions.stream(model="nobody", messages=messages))

    async def ask() -> str:
        async with AsyncClient("http://127.0.0.1:1", token, decoder_url=decoder_process.url) as client:
            stream = client.chat.completions.stream(model="care", messages=messages, **options)
            return "".join([p.choices[0].delta.content or "" async for p in stream if p.choices])

    assert asyncio.run(ask()) == whole.choices[0].message.content


def _served(client: Client) -> bool:
    try:
        return any(model.state == "ready" for model in client.models.list() if model.id == "care")
    except sdk.AuthenticationError:  # the snapshot with the key is on its way
        return False


def test_the_generate_command_prints_the_sdks_answers(
    decoder_process: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = decoder_process.installation.add_key("acme")
    decoder_process.installation.publish()
    monkeypatch.setenv("ARMATURE_API_URL", decoder_process.url)  # only the decoder is asked
    monkeypatch.setenv("ARMATURE_API_KEY", token)
    options = ["--max-tokens", "8", "--seed", "3", "--pref", "empathy=2,truthfulness=1"]
    with Client() as client:
        wait_until(lambda: _served(client))

    def run(*arguments: str, code: int = 0, input: str | None = None) -> str:
        result = CliRunner().invoke(app, ["generate", *arguments], input=input)
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout

    answer = json.loads(run("care", "hi", *options, "--json"))
    assert answer["alignment"]["preference"]["empathy"] == pytest.approx(2 / 3)
    assert run("care", "hi", *options) == answer["choices"][0]["message"]["content"] + "\n"
    text = json.loads(run("care", "hi", "--text", *options, "--json"))["choices"][0]["text"]
    assert run("care", "-", "--text", *options, input="hi") == text + "\n"
    run("nobody", "hi", code=1)
