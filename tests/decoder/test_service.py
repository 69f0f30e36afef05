"""A request that can not be started holds nothing, and one that is answered is counted, without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from armature.contracts.generation import CompletionRequest
from armature.contracts.serving import ServedTenant
from armature.contracts.tenants import TenantLimits
from armature.http.rates import LocalCounter, WrongKeys
from armature.inference.batch import GuidedBatch, Sampled
from armature.storage.local import LocalArtifactStore
from armature_decoder.generation import Piece
from armature_decoder.http.responses import TextResponseShape
from armature_decoder.limits.drain import DrainGate
from armature_decoder.limits.token_quota import TenantQuotas
from armature_decoder.profiles import Profiles
from armature_decoder.prompts import text_prompt
from armature_decoder.request_metrics import RequestMetrics
from armature_decoder.service import DecoderService, Running
from armature_decoder.settings import DecoderSettings
from tests.support.bundle_caches import Caches, ready
from tests.support.processes import wait_until
from tests.support.serving import PublishedBundle, ServedInstallation, publish_bundle
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

END = byte_tokenizer().eos_token_id


@dataclass
class Served:
    """A service on a bundle that is ready, its counter of tokens, and the registry of its metrics."""

    service: DecoderService
    tenant: ServedTenant
    bundle: PublishedBundle
    caches: Caches
    tokens: LocalCounter
    registry: CollectorRegistry

    async def start(self, shape: TextResponseShape | None = None, **fields: Any) -> Running:
        body = {"model": "care", "prompt": "ab", "max_tokens": 200, **fields}
        prompt, request = text_prompt(body["prompt"], "prompt"), CompletionRequest.model_validate(body)
        return await self.service._start(self.tenant, request, [prompt], shape or TextResponseShape())

    def sample(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"armature_{name}", labels) or 0.0


class Unhurried(GuidedBatch):
    """A real batch whose requests run for as long as a test looks at them."""

    def step(self) -> list[Sampled]:
        time.sleep(0.2)
        return super().step()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalArtifactStore, PublishedBundle]:
    root = tmp_path_factory.mktemp("service")
    store = LocalArtifactStore(root / "store")
    return store, publish_bundle(store, root, seed=1)


@pytest.fixture
def served(tmp_path: Path, published: tuple[LocalArtifactStore, PublishedBundle]) -> Iterator[Served]:
    store, bundle = published
    installation, caches = ServedInstallation(store), Caches(store, tmp_path / "disk")
    installation.add_tenant("acme")
    installation.point("acme", "care", bundle.manifest)
    tenant = installation.tenants["acme"].model_copy(update={"limits": TenantLimits(tokens_per_minute=100_000)})
    cache, counter, registry = caches.make(batch=Unhurried), LocalCounter(), CollectorRegistry()
    profiles = Profiles(cache, preload=True)
    profiles.update(installation.snapshot())
    lease = cache.lease(bundle.manifest)
    ready(lease)
    lease.release()
    service = DecoderService(
        profiles,
        DecoderSettings(),
        RequestMetrics(registry),
        WrongKeys(LocalCounter(), 10),
        TenantQuotas(counter),
        DrainGate(),
    )
    yield Served(service, tenant, bundle, caches, counter, registry)
    caches.close()


class UnnamedShape(TextResponseShape):
    """A shape that fails where the answer's heading is made."""

    @property
    def id_prefix(self) -> str:
        raise RuntimeError("no name for this answer")


class Uncounted(RequestMetrics):
    """Metrics that fail where a request has just been queued."""

    def asked(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no counter")


@pytest.mark.parametrize("when", ["before it is queued", "after it was queued"])
def test_a_request_that_fails_at_its_start_holds_nothing(served: Served, when: str) -> None:
    async def start() -> None:
        with pytest.raises(RuntimeError, match=r"no (name|counter)"):
            await served.start(UnnamedShape() if when == "before it is queued" else None)
        await asyncio.to_thread(assert_nothing_is_held, served)  # while the loop can still hear of tokens

    if when == "after it was queued":
        served.service = dataclasses.replace(served.service, metrics=Uncounted(CollectorRegistry()))
    asyncio.run(start())


@pytest.mark.parametrize(("prompt", "echo"), [("ab", "ab"), ([END], "")], ids=["text", "a special token"])
def test_an_echo_alone_is_an_answer_that_has_finished(served: Served, prompt: str | list[int], echo: str) -> None:
    async def answer() -> list[Piece]:
        running = await served.start(prompt=prompt, max_tokens=0, echo=True, n=2)
        with contextlib.closing(running):
            return [piece async for piece in running.generation.pieces()]

    assert [(piece.text, piece.finish_reason) for piece in asyncio.run(answer())] == [(echo, "length")] * 2
    assert served.sample("request_success_total", finished_reason="length") == 2
    assert served.sample("request_generation_tokens_count") == 2
    assert served.sample("request_prompt_tokens_count") == 1


def assert_nothing_is_held(served: Served) -> None:
    cache = served.caches.made[0]
    (runtime,) = cache.runtimes()
    assert served.service.gate.inside == 0
    assert served.tokens.add(f"tokens:{served.tenant.id}", 0) == 0
    wait_until(lambda: runtime.engine.running == runtime.engine.pending == 0, 5)
    cache.retain([])  # only a bundle without leases is unloaded
    wait_until(lambda: cache.counts() == {})
