"""Aliases move, keys are revoked, artifacts are damaged and clients disconnect while requests are served."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from armature.contracts.artifacts import ArtifactRef
from armature.contracts.serving import ServedCanary
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.tokenization.prompts import encode_text
from armature.storage.artifacts import blob_key, read_manifest
from armature.storage.local import LocalArtifactStore
from tests.support.generate import generate_guided
from tests.support.processes import wait_until
from tests.support.serving import (
    ATTRIBUTES,
    DecoderProcess,
    PublishedBundle,
    ServedInstallation,
    publish_bundle,
    run_decoder,
)
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
PROMPT, TOKENS = "tell me", 40


@pytest.fixture(scope="module")
def token(decoder_process: DecoderProcess) -> str:
    installation = decoder_process.installation
    token = installation.add_key("acme")
    installation.publish()
    time.sleep(0.5)
    decoder_process.wait_ready(token, "care", "other")
    return token


@pytest.fixture
def client(decoder_process: DecoderProcess, token: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=token, max_retries=0) as client:
        yield client


def metric(decoder: DecoderProcess, name: str) -> float:
    families = text_string_to_metric_families(decoder.metrics())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def reference(bundle: PublishedBundle, seed: int) -> str:
    guide = Guide(tuple(1 / len(ATTRIBUTES) for _ in ATTRIBUTES), 2.0, 6.0)
    request = GuidedRequest(tuple(encode_text(TOKENIZER, PROMPT)), TOKENS, seed, guide)
    return str(TOKENIZER.decode(generate_guided(bundle.reference, [request])[0], skip_special_tokens=True))


def stream(client: OpenAI, model: str, seed: int) -> tuple[int, str]:
    """(version that answered, text)."""
    version, text = 0, ""
    for chunk in client.completions.create(model=model, prompt=PROMPT, max_tokens=TOKENS, seed=seed, stream=True):
        alignment = (chunk.model_extra or {}).get("alignment")
        version = alignment["version"] if alignment else version
        text += "".join(choice.text for choice in chunk.choices)
    return version, text


@pytest.mark.bad_input(29)
def test_an_alias_moves_under_load_and_every_stream_is_whole(
    decoder_process: DecoderProcess, client: OpenAI, token: str, serving_bundles: dict[str, PublishedBundle]
) -> None:
    installation = decoder_process.installation
    third = publish_bundle(installation.store, decoder_process.log.parent, seed=3)
    bundles = {1: serving_bundles["one"], 2: third}
    expected = {(version, seed): reference(bundle, seed) for version, bundle in bundles.items() for seed in range(3)}
    installation.point("acme", "swap", bundles[1].manifest, version=1)
    installation.publish()
    wait_until(lambda: "swap" in decoder_process.states(token))
    heard: list[tuple[int, int, str]] = []
    stopping = threading.Event()

    def keep_asking(seed: int) -> None:
        while not stopping.is_set():
            heard.append((seed, *stream(client, "swap", seed)))

    with ThreadPoolExecutor(3) as pool:
        askers = [pool.submit(keep_asking, seed) for seed in range(3)]
        try:
            wait_until(lambda: len(heard) >= 6, 30)
            installation.point("acme", "swap", bundles[2].manifest, version=2)
            installation.publish()
            wait_until(lambda: sum(version == 2 for _, version, _ in heard) >= 6, 30)
        finally:
            stopping.set()
        for asker in askers:
            asker.result()
    assert {version for _, version, _ in heard} == {1, 2}
    assert all(text == expected[version, seed] for seed, version, text in heard)
    installation.drop("acme", "swap")
    installation.publish()
    wait_until(lambda: "swap" not in decoder_process.states(token))
    with pytest.raises(openai.NotFoundError):
        stream(client, "swap", 0)


def test_a_canary_answers_its_share_and_a_user_stays_with_it(
    decoder_process: DecoderProcess, client: OpenAI, token: str, serving_bundles: dict[str, PublishedBundle]
) -> None:
    installation = decoder_process.installation
    stable, newcomer = serving_bundles["one"].manifest, serving_bundles["two"].manifest

    def split(weight: float) -> None:
        canary = ServedCanary(version=2, created_at=1, manifest=newcomer, weight=weight)
        installation.point("acme", "split", stable, version=1, canary=canary)
        installation.publish()

    def answers(user: str) -> int:
        answer = client.completions.create(model="split", prompt=PROMPT, max_tokens=1, user=user)
        return int((answer.model_extra or {})["alignment"]["version"])

    users = [f"user-{number}" for number in range(60)]
    split(0.3)
    wait_until(lambda: "split" in decoder_process.states(token) and {answers(user) for user in users[:20]} == {1, 2})
    first = {user: answers(user) for user in users}
    assert first == {user: answers(user) for user in users}
    assert 6 <= sum(version == 2 for version in first.values()) <= 32  # 18 expected
    split(0.999999)
    wait_until(lambda: answers(next(user for user in users if first[user] == 1)) == 2)
    assert all(answers(user) == 2 for user in users)  # the canary keeps its users while its share grows
    installation.drop("acme", "split")
    installation.publish()
    wait_until(lambda: "split" not in decoder_process.states(token))


def test_a_canary_that_can_not_be_loaded_fails_no_request(
    decoder_process: DecoderProcess, client: OpenAI, token: str, serving_bundles: dict[str, PublishedBundle]
) -> None:
    installation = decoder_process.installation
    missing = serving_bundles["two"].manifest.model_copy(
        update={"arm": ArtifactRef(digest="0" * 64, manifest_key=f"tenants/ten_a/artifacts/{'0' * 64}.json")}
    )
    canary = ServedCanary(version=2, created_at=1, manifest=missing, weight=0.999999)
    installation.point("acme", "doomed", serving_bundles["one"].manifest, version=1, canary=canary)
    installation.publish()
    wait_until(lambda: "doomed" in decoder_process.states(token))
    assert {stream(client, "doomed", seed)[0] for seed in range(6)} == {1}
    installation.drop("acme", "doomed")
    installation.publish()
    wait_until(lambda: "doomed" not in decoder_process.states(token))


@pytest.mark.bad_input(32)
def test_a_corrupt_version_takes_nothing_down(
    decoder_process: DecoderProcess, client: OpenAI, token: str, serving_bundles: dict[str, PublishedBundle]
) -> None:
    installation = decoder_process.installation
    broken = publish_bundle(installation.store, decoder_process.log.parent, seed=4).manifest
    assert broken.arm is not None
    weights = next(f for f in read_manifest(installation.store, broken.arm).files if f.path.endswith("safetensors"))
    key = blob_key("ten_a", weights.sha256)
    data = installation.store.get_bytes(key)
    installation.store.put_bytes(key, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    failures = metric(decoder_process, "armature_bundle_load_failures_total")
    installation.point("acme", "fragile", serving_bundles["one"].manifest, version=1)
    installation.publish()
    wait_until(lambda: decoder_process.states(token).get("fragile") == "ready")
    assert stream(client, "fragile", 0)[0] == 1
    installation.point("acme", "fragile", broken, version=2)
    installation.point("acme", "new", broken, version=1)
    installation.publish()
    wait_until(lambda: decoder_process.states(token).get("new") == "failed")
    assert metric(decoder_process, "armature_bundle_load_failures_total") > failures
    assert stream(client, "fragile", 0) == (1, reference(serving_bundles["one"], 0))
    with pytest.raises(openai.InternalServerError) as error:
        stream(client, "new", 0)
    assert (error.value.status_code, error.value.code) == (503, "model_unloadable")
    assert "blob" not in str(error.value)
    assert "does not hash" in (client.models.retrieve("new").model_extra or {})["reason"]
    for profile in ("fragile", "new"):
        installation.drop("acme", profile)
    installation.publish()


def test_a_revoked_key_stops_working(decoder_process: DecoderProcess) -> None:
    installation = decoder_process.installation
    token = installation.add_key("zen")
    installation.publish()
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=token, max_retries=0) as client:
        wait_until(lambda: _may_list(client))
        assert [model.id for model in client.models.list()] == ["calm"]
        installation.revoke_keys("zen")
        installation.publish()
        wait_until(lambda: not _may_list(client), seconds=5)


def _may_list(client: OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


@pytest.mark.parametrize("streaming", [True, False])
def test_a_request_is_cancelled_when_its_client_disconnects(
    decoder_process: DecoderProcess, token: str, streaming: bool
) -> None:
    body = {"model": "care", "prompt": "x", "max_tokens": 250, "n": 8, "temperature": 0}
    with httpx.Client(base_url=decoder_process.url, headers={"Authorization": f"Bearer {token}"}) as http:
        started = time.monotonic()
        whole = http.post("/v1/completions", json=body).json()
        duration = time.monotonic() - started
        assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}
        if streaming:
            with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/completions", json=body, timeout=duration / 4)
        started = time.monotonic()
        wait_until(lambda: metric(decoder_process, "armature_num_requests_running") == 0)
        assert time.monotonic() - started < duration / 2


def test_metrics_count_what_was_served(decoder_process: DecoderProcess, client: OpenAI) -> None:
    names = ["prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count"]
    names += ["e2e_request_latency_seconds_count", "request_success_total", "inter_token_latency_seconds_count"]
    before = {name: metric(decoder_process, f"armature_{name}") for name in names}
    answer = client.completions.create(model="care", prompt="abcd", max_tokens=5, seed=1, temperature=0)
    assert answer.usage is not None
    after = {name: metric(decoder_process, f"armature_{name}") - value for name, value in before.items()}
    n = answer.usage.completion_tokens
    assert list(after.values()) == [answer.usage.prompt_tokens, n, 1, 1, 1, n - 1]
    assert "acme" not in decoder_process.metrics()


@pytest.mark.process
def test_sigterm_lets_streams_finish_and_a_restart_needs_no_store(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path / "store")
    bundle = publish_bundle(store, tmp_path, seed=1)
    installation = ServedInstallation(store)
    installation.add_tenant("acme")
    token = installation.add_key("acme")
    installation.point("acme", "care", bundle.manifest)
    installation.publish()
    headers = {"Authorization": f"Bearer {token}"}
    body: dict[str, Any] = {"model": "care", "prompt": PROMPT, "max_tokens": TOKENS, "seed": 1, "stream": True}
    with run_decoder(tmp_path, installation) as decoder:
        decoder.wait_ready(token, "care")
        with httpx.stream("POST", f"{decoder.url}/v1/completions", json=body, headers=headers) as response:
            lines = response.iter_lines()
            events = [next(lines)]
            decoder.process.send_signal(signal.SIGTERM)
            events += [line for line in lines if line]
        assert decoder.process.wait(20) in (0, -signal.SIGTERM)  # uvicorn raises the signal again when it is done
    assert events[-1] == "data: [DONE]"
    assert _text(events) == reference(bundle, 1)
    (tmp_path / "store").rename(tmp_path / "gone")
    with run_decoder(tmp_path, installation) as decoder:
        decoder.wait_ready(token, "care")
        answer = httpx.post(f"{decoder.url}/v1/completions", json={**body, "stream": False}, headers=headers).json()
        assert answer["choices"][0]["text"] == reference(bundle, 1)


def _text(events: list[str]) -> str:
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
