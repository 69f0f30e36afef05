"""The app in this process, with faults put into its parts: what clients get when a part fails or is missing."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI

from armature.inference.batch import GuidedRequest, Sampled
from armature.settings import StoreSettings
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles.bundle import Runtime
from armature_decoder.engine.request import EngineRequest
from armature_decoder.http.app import create_app
from armature_decoder.limits.drain import DrainGate
from armature_decoder.profiles import Profiles
from armature_decoder.settings import DecoderServiceSettings, DecoderSettings
from tests.support.processes import wait_until
from tests.support.serving import PublishedBundle, ServedInstallation, publish_bundle

BODY = {"model": "care", "prompt": "x", "max_tokens": 100, "temperature": 0}


class Setting:
    """A store with one bundle in it, and apps on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.installation = ServedInstallation(LocalArtifactStore(root / "store"))
        self.bundle: PublishedBundle = publish_bundle(self.installation.store, root, seed=1)
        self.installation.add_tenant("acme")
        self.token = self.installation.add_key("acme")
        self.installation.point("acme", "care", self.bundle.manifest)

    def app(self, **options: Any) -> FastAPI:
        store = StoreSettings(path=self.root / "store")
        decoder = DecoderSettings(cache_dir=self.root / "cache", poll_interval=0.05, **options)
        return create_app(DecoderServiceSettings(store=store, decoder=decoder))

    def client(self, app: FastAPI) -> TestClient:
        return TestClient(app, headers={"Authorization": f"Bearer {self.token}"}, raise_server_exceptions=False)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


@pytest.fixture
def client(setting: Setting) -> Iterator[TestClient]:
    setting.installation.publish()
    with setting.client(setting.app(max_slots=1, max_waiting=2)) as client:
        assert client.post("/v1/completions", json={**BODY, "max_tokens": 1}).status_code == 200
        yield client


def runtime_of(client: TestClient) -> Runtime:
    app = client.app
    assert isinstance(app, FastAPI)
    profiles: Profiles = app.state.service.profiles
    return profiles._cache.runtimes()[0]


def break_step(client: TestClient, after: int) -> None:
    """Let the batch fail at a later step."""
    backend: Any = runtime_of(client).engine._batch
    step: Callable[[], list[Sampled]] = backend.step
    calls = 0

    def faulty_step() -> list[Sampled]:
        nonlocal calls
        calls += 1
        if calls == after:
            raise RuntimeError("device fault at 0xdeadbeef")
        return step()

    backend.step = faulty_step


def test_before_the_first_snapshot_the_decoder_is_alive_but_not_ready(setting: Setting) -> None:
    with setting.client(setting.app()) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/readyz", "/v1/models"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable_error")
            assert answer.headers["retry-after"]
        setting.installation.publish()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["care"]


def test_a_request_that_waited_too_long_for_its_bundle_is_503(setting: Setting) -> None:
    setting.installation.publish()
    with setting.client(setting.app(preload=False, load_wait=0.0)) as client:
        assert client.get("/v1/models").json()["data"][0]["state"] == "absent"
        answer = client.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
        wait_until(lambda: client.get("/v1/models").json()["data"][0]["state"] == "ready", 30)
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_a_failure_in_mid_stream_is_an_error_event_without_done(client: TestClient) -> None:
    break_step(client, after=4)
    lines = [line for line in client.post("/v1/completions", json={**BODY, "stream": True}).text.split("\n") if line]
    assert len(lines) >= 2
    last = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert (last["type"], last["code"]) == ("server_error", "internal_error")
    assert last["request_id"]
    assert "0xdeadbeef" not in lines[-1]
    assert client.post("/v1/completions", json=BODY).status_code == 200


def test_the_openai_client_raises_on_a_failure_in_mid_stream(setting: Setting, client: TestClient) -> None:
    break_step(client, after=4)
    base_url = str(client.base_url.join("/v1"))
    with OpenAI(base_url=base_url, api_key=setting.token, http_client=client, max_retries=0) as stock:
        with pytest.raises(openai.APIError, match="generation failed"):
            list(stock.completions.create(**BODY, stream=True))  # type: ignore[call-overload]
        break_step(client, after=2)
        with pytest.raises(openai.InternalServerError):
            stock.completions.create(**BODY)  # type: ignore[call-overload]


def test_a_full_queue_is_429_for_the_tenant_that_filled_it(setting: Setting, client: TestClient) -> None:
    engine = runtime_of(client).engine
    heard: queue.Queue[Any] = queue.Queue()

    def asked(tenant: str) -> EngineRequest:
        return EngineRequest(tenant, GuidedRequest((5, 6), 100_000), heard.put)

    engine.submit([running := asked("ten_acme")])
    heard.get(timeout=20)
    engine.submit([waiting := asked("ten_acme")])
    answer = client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"]
    engine.submit([other := asked("ten_zen")])
    engine.cancel([running, waiting, other])
    wait_until(lambda: engine.pending == engine.running == 0)
    assert client.post("/v1/completions", json={**BODY, "n": 2}).status_code == 200
    never = client.post("/v1/completions", json={**BODY, "n": 4})
    assert (never.status_code, never.json()["error"]["param"]) == (422, "n")


def test_a_draining_decoder_finishes_requests_and_admits_no_more(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    gate: DrainGate = app.state.service.gate
    assert client.portal is not None
    client.portal.call(gate.enter)
    closing = client.portal.start_task_soon(gate.drain, 60.0)
    wait_until(lambda: client.get("/readyz").status_code == 503)
    for path in ("/v1/completions", "/v1/chat/completions"):
        messages = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
        answer = client.post(path, json={"model": "care", **messages})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"]
    assert client.get("/healthz").status_code == 200
    assert not closing.done()
    client.portal.call(gate.leave)
    closing.result(timeout=20)
    assert gate.inside == 0
    client.portal.call(gate.drain, 60.0)  # no request is inside: at once


def test_a_prompt_is_encoded_off_the_event_loop(client: TestClient) -> None:
    app, go_on = client.app, threading.Event()
    assert isinstance(app, FastAPI)
    runtime_of(client).loaded.encoding.submit(go_on.wait, 60)  # the bundle's one thread for encoding is busy
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/completions", json={**BODY, "prompt": "x" * 150})
        wait_until(lambda: app.state.service.gate.inside == 1)
        assert client.get("/healthz").status_code == 200
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        go_on.set()
        assert waiting.result(timeout=20).status_code == 200


def test_a_drain_ends_after_its_seconds(client: TestClient) -> None:
    gate = DrainGate()
    gate.enter()
    assert client.portal is not None
    client.portal.call(gate.drain, 0.01)
    assert gate.inside == 1


def test_leases_are_released_however_a_request_ends(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    for changes in (
        {"max_tokens": 3},
        {"stream": True},
        {"n": 8},
        {"max_tokens": 1000},
        {"preference": {"charm": 1.0}},
    ):
        client.post("/v1/completions", json={**BODY, **changes})
    break_step(client, after=2)
    client.post("/v1/completions", json=BODY)
    bundles = app.state.service.profiles._cache._bundles.values()
    assert [bundle.leases for bundle in bundles] == [0]
    assert app.state.service.gate.inside == 0


def test_a_model_without_an_arm_serves_and_refuses_guidance(setting: Setting) -> None:
    bare = setting.bundle.manifest.model_copy(update={"arm": None, "attributes": [], "loss_form": None})
    setting.installation.point("acme", "bare", bare)
    setting.installation.publish()
    with setting.client(setting.app()) as client:
        answer = client.post("/v1/completions", json={**BODY, "model": "bare", "guidance_weight": 0})
        alignment = answer.json()["alignment"]
        assert (alignment["arm_digest"], alignment["preference"], alignment["guidance_weight"]) == (None, None, 0.0)
        guided = client.post("/v1/completions", json={**BODY, "guidance_weight": 0}).json()
        assert answer.json()["choices"] == guided["choices"]
        overrides = ({"preference": {"empathy": 1.0}}, {"preference": {}}, {"guidance_weight": 1.0})
        for override in (*overrides, {"safe_set_delta": 2.0}, {"safe_set_delta": 0.0}):
            refused = client.post("/v1/completions", json={**BODY, "model": "bare", **override})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_arm")
