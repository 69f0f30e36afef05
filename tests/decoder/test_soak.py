"""Two thousand requests by eight tenants while bundles are loaded, unloaded and replaced under the same name."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from armature.contracts.profiles import ProfileManifest
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.tokenization.prompts import encode_text
from armature.storage.local import LocalArtifactStore
from tests.support.generate import generate_guided
from tests.support.serving import (
    ATTRIBUTES,
    DecoderProcess,
    PublishedBundle,
    ServedInstallation,
    publish_bundle,
    run_decoder,
)
from tests.support.tiny_models import byte_tokenizer

TENANTS = [f"tenant-{number}" for number in range(8)]
REQUESTS, PER_PHASE, AT_ONCE = 2000, 100, 16
WARM_PHASES = 8
"""By then every bundle has come and gone twice."""
FLAT_BYTES = 32 << 20
"""What the phases after that may add. The allocator still takes some 10 MiB: in runs of 70 phases it stops after 40."""
TOKENIZER = byte_tokenizer()


@dataclass(frozen=True)
class Question:
    """A request, as the clients ask it and as the reference answers it."""

    prompt: str
    preference: tuple[float, ...]
    seed: int
    max_tokens: int

    @property
    def body(self) -> dict[str, object]:
        return {
            "model": "care",
            "prompt": self.prompt,
            "preference": dict(zip(ATTRIBUTES, self.preference, strict=True)),
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }

    def sequence(self) -> GuidedRequest:
        prompt = tuple(encode_text(TOKENIZER, self.prompt))
        return GuidedRequest(prompt, self.max_tokens, self.seed, Guide(self.preference, 2.0, 6.0))


QUESTIONS = [
    Question(prompt, preference, seed, 4 + seed)
    for seed, (prompt, preference) in enumerate(
        (prompt, preference)
        for prompt in ("tell me", "why is it that we", "x")
        for preference in ((1.0, 0.0, 0.0), (0.25, 0.25, 0.5))
    )
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PublishedBundle]]:
    """Two ARMs on the same dense weights, one on those minus another harm vector, and one on another base."""
    root = tmp_path_factory.mktemp("soak")
    store = LocalArtifactStore(root / "store")
    return root, [
        publish_bundle(store, root, seed=seed, arm_seed=arm_seed)
        for seed, arm_seed in ((1, 1), (1, 3), (2, 2), (101, 5))
    ]


def expected_answers(bundle: PublishedBundle) -> list[str]:
    """Each question asked alone."""
    return [
        str(TOKENIZER.decode(generate_guided(bundle.reference, [question.sequence()])[0], skip_special_tokens=True))
        for question in QUESTIONS
    ]


def resident_bytes(decoder: DecoderProcess) -> int:
    status = Path(f"/proc/{decoder.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10


@dataclass
class Phases:
    """Two of the bundles serve at a time. With each phase one goes, another comes, and every tenant's alias moves."""

    installation: ServedInstallation
    manifests: list[ProfileManifest]
    number: int = 0

    def which(self, tenant: int, phase: int) -> int:
        return (phase + (tenant + phase) % 2) % len(self.manifests)

    def begin_next(self) -> None:
        self.number += 1
        for index, tenant in enumerate(TENANTS):
            manifest = self.manifests[self.which(index, self.number)]
            self.installation.point(tenant, "care", manifest, version=self.number)
        self.installation.publish()


async def soak(decoder: DecoderProcess, tokens: list[str], phases: Phases, expected: list[list[str]]) -> list[int]:
    """Ask everything and compare every answer; returns the resident bytes at the end of each phase."""
    sizes: list[int] = []
    turns = iter(range(REQUESTS))
    answered: set[int] = set()

    async def keep_asking(http: httpx.AsyncClient, draw: random.Random) -> None:
        for turn in turns:
            if turn % PER_PHASE == 0:
                sizes.append(resident_bytes(decoder))
                phases.begin_next()
            tenant, index = draw.randrange(len(TENANTS)), draw.randrange(len(QUESTIONS))
            headers = {"Authorization": f"Bearer {tokens[tenant]}"}
            response = await http.post("/v1/completions", json=QUESTIONS[index].body, headers=headers)
            assert response.status_code == 200, response.text
            answer = response.json()
            bundle = phases.which(tenant, answer["alignment"]["version"])
            answered.add(bundle)
            assert answer["choices"][0]["text"] == expected[bundle][index]

    async with httpx.AsyncClient(base_url=decoder.url, timeout=60) as http, asyncio.TaskGroup() as clients:
        for number in range(AT_ONCE):
            clients.create_task(keep_asking(http, random.Random(number)))
    assert answered == set(range(len(expected)))
    return sizes


@pytest.mark.process
def test_every_answer_is_the_tenant_s_own_and_memory_stays_flat(
    bundles: tuple[Path, list[PublishedBundle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # a heap for each thread that ever ran would hide what is lost
    root, published = bundles
    installation = ServedInstallation(LocalArtifactStore(root / "store"))
    for tenant in TENANTS:
        installation.add_tenant(tenant)
    tokens = [installation.add_key(tenant) for tenant in TENANTS]
    phases = Phases(installation, [bundle.manifest for bundle in published])
    phases.begin_next()
    expected = [expected_answers(bundle) for bundle in published]
    assert len({tuple(answers) for answers in expected}) == len(published)
    with run_decoder(root, installation) as decoder:
        decoder.wait_ready(tokens[0], "care")
        decoder.wait_ready(tokens[1], "care")
        sizes = asyncio.run(soak(decoder, tokens, phases, expected))
    growth = sizes[-1] - sizes[WARM_PHASES]
    assert growth <= FLAT_BYTES, [size >> 20 for size in sizes]
