"""What a request takes is known before any of it is computed, and what can not fit is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from armature.contracts.sda import Sda
from armature.inference.batch import GuidedBatch, Joining
from armature.inference.grouped import GroupedRunner
from armature.inference.lean.model import LeanModel
from armature.inference.lean.prefill import LeanPrompts
from armature.inference.lean.runner import LeanRunner
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.settings import StoreSettings
from armature.storage.local import LocalArtifactStore
from armature_decoder.engine.scheduler import KvBudget
from armature_decoder.http.app import create_app
from armature_decoder.settings import DecoderServiceSettings, DecoderSettings
from tests.support.adapters import add_random_adapter
from tests.support.processes import wait_until
from tests.support.separate_bundles import publish_separate_bundle
from tests.support.serving import PublishedBundle, ServedInstallation, publish_bundle
from tests.support.tiny_models import tiny_llama

GUIDE, TOLD = Guide((1.0,), 2.0), Instruction(2.0)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guided": {"guide": GUIDE},
    "told": {"instruction": TOLD},
    "both": {"guide": GUIDE, "instruction": TOLD},
}

_ROOM = 4 * 256 * (128 + 64)
"""Three streams are reserved as four; both bundles take 256 bytes a position for each, beside a prompt's own cache."""


def one_model() -> GuidedModel:
    return GuidedModel(LeanModel(add_random_adapter(tiny_llama(), ["kind"])), frozenset({-1}), 259, ("kind",))


def two_models() -> GuidedModel:
    arm = LeanModel(add_random_adapter(tiny_llama(layers=1), ["kind"]))
    return GuidedModel(LeanModel(tiny_llama(layers=4)), frozenset({-1}), 259, ("kind",), "reference", arm)


MODELS: dict[str, Callable[[], GuidedModel]] = {"one_model": one_model, "two_models": two_models}


def reserved(batch: GuidedBatch, joining: Joining) -> int:
    """Bytes of keys and values, of the batch and of the request that joins it."""
    runner: Any = batch._runner
    if isinstance(runner, GroupedRunner):
        runners, prompts = [*runner._runners.values()], [part.state for part in joining.prefill.state.values()]
    else:
        runners, prompts = [runner], [joining.prefill.state]
    caches = [(one._caches.lower, one._caches.upper) for one in runners if isinstance(one, LeanRunner)]
    caches += [(one.lower, one.upper) for one in prompts if isinstance(one, LeanPrompts)]
    return sum(buffer.nbytes for pair in caches for cache in pair for buffer in cache._buffers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_lone_request_takes_what_was_counted(model: str, kind: str) -> None:
    guided = MODELS[model]()
    below = (9,) * 70 if "instruction" in KINDS[kind] else ()
    own = (5,) * 60 if guided.arm is not None and "guide" in KINDS[kind] else ()
    request = GuidedRequest((5,) * 60, 1, instructed_prompt=below, arm_prompt=own, **KINDS[kind])
    request = dataclasses.replace(request, max_tokens=192 - request.longest_prompt)
    batch, memory = GuidedBatch(guided), guided.kv_memory
    joining = batch.begin([request])
    batch.join(joining)
    for _ in range(request.max_tokens - 1):
        batch.step()
    prompts, streams = request.stream_count
    counted = memory.needed(prompts, streams, 192) + memory.needed(prompts, streams, request.longest_prompt)
    assert 0 < reserved(batch, joining) <= counted
    assert KvBudget(memory, counted).context_of(request.stream_count, request.longest_prompt) == 192
    assert KvBudget(memory, counted - 1).context_of(request.stream_count, request.longest_prompt) == 128
    assert KvBudget(memory, counted).fits([], [request])
    assert not KvBudget(memory, counted - 1).fits([], [request])
    assert KvBudget(memory, 1).context_of(request.stream_count, request.longest_prompt) == 0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A decoder of 256 positions, with room for 128 of all streams that an ARM and an instruction make."""
    root = tmp_path_factory.mktemp("budget")
    installation = ServedInstallation(LocalArtifactStore(root / "store"))
    installation.add_tenant("acme")
    token = installation.add_key("acme")
    for name, bundle in _bundles(installation, root).items():
        sda = Sda(instruction="Be kind.", strength=2.0, adaptive_temperature=None)
        installation.point("acme", name, bundle.manifest.model_copy(update={"sda": sda}))
    installation.publish()
    options = DecoderSettings(cache_dir=root / "cache", poll_interval=0.05, kv_bytes=_ROOM)
    app = create_app(DecoderServiceSettings(store=StoreSettings(path=root / "store"), decoder=options))
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        wait_until(lambda: all(one["state"] == "ready" for one in client.get("/v1/models").json()["data"]), 30)
        yield client


def _bundles(installation: ServedInstallation, root: Path) -> dict[str, PublishedBundle]:
    return {
        "care": publish_bundle(installation.store, root, seed=1),
        "separate": publish_separate_bundle(installation.store, root / "separate"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", ["care", "separate"])
def test_each_stream_more_leaves_less_context(client: TestClient, model: str) -> None:
    body = {"model": model, "prompt": "x", "temperature": 0, "max_tokens": 200}
    refused = client.post("/v1/completions", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert error["message"].endswith("the context is 128")
    plain = {"guidance_weight": 0, "sda": {"strength": 0}}
    for fits in ({**body, **plain}, {**body, "max_tokens": 100}):
        assert client.post("/v1/completions", json=fits).status_code == 200
