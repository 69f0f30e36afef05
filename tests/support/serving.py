"""A store with something to serve in it: published bundles, tenants with keys, and the snapshot that names them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch

from armature.algorithms.selection_rules import select_top
from armature.algorithms.task_vectors import SparseVector, subtract_task_vector
from armature.algorithms.tensor_sources import LiveTensors
from armature.contracts.artifacts import (
    AdapterMetadata,
    ArtifactMetadata,
    ArtifactRef,
    Backbone,
    Producer,
    TaskVectorMetadata,
)
from armature.contracts.base import canonical_json
from armature.contracts.preferences import Guidance
from armature.contracts.profiles import ProfileManifest
from armature.contracts.serving import SNAPSHOT_KEY, ServedCanary, ServedKey, ServedModel, ServedTenant, ServingSnapshot
from armature.contracts.specs.arm import AdapterShape
from armature.contracts.tenants import Scope, issue_key
from armature.inference.model import GuidedModel, eos_token_ids
from armature.modeling.adapters.arm import save_adapter
from armature.modeling.adapters.probe import record_probe
from armature.modeling.checkpoints.folder import describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.checkpoints.task_vector import VectorOrigin, write_task_vector
from armature.storage.artifacts import publish_folder
from armature.storage.base import ArtifactStore
from armature.storage.local import LocalArtifactStore
from tests.support.adapters import add_random_adapter
from tests.support.processes import reserve_port, stop, wait_until, wait_until_ready
from tests.support.tiny_models import CHAT_TEMPLATE, save_tiny_checkpoint, tiny_llama

ATTRIBUTES = ("empathy", "truthfulness", "helpfulness")
METRICS_TOKEN = "tests-scrape-with-this"
PRODUCER = Producer(kind="test", spec={}, version="0")


@dataclass(frozen=True)
class PublishedBundle:
    """A profile's manifest, and the same model as it was in memory before it was published."""

    manifest: ProfileManifest
    reference: GuidedModel


def publish_bundle(
    store: ArtifactStore,
    workdir: Path,
    *,
    seed: int,
    tenant: str = "ten_a",
    attributes: Sequence[str] = ATTRIBUTES,
    chat_template: str | None = CHAT_TEMPLATE,
    guidance: Guidance | None = None,
    harm_scale: float = 1.5,
    shape: AdapterShape = AdapterShape(layers="all"),
    arm_seed: int | None = None,
) -> PublishedBundle:
    """Publish a random base (the same for every seed below 100), a random harm vector and a random adapter on both.

    Bundles of one ``seed`` and several ``arm_seed`` have the same dense weights.
    """
    arm_seed = seed if arm_seed is None else arm_seed
    folder = workdir / f"bundle-{seed}-{arm_seed}"

    def publish(name: str, metadata: ArtifactMetadata) -> ArtifactRef:
        return publish_folder(store, tenant, folder / name, metadata=metadata, parents=[], producer=PRODUCER)[1]

    base_folder = save_tiny_checkpoint(folder / "base", tiny_llama(seed // 100), chat_template)
    model, tokenizer = load_model(base_folder), load_tokenizer(base_folder)
    base = describe_checkpoint(open_checkpoint(base_folder), tokenizer)
    vector = _random_vector(dict(model.named_parameters()), seed)
    origin = VectorOrigin(base_model_digest=base.model_digest, rule="global", density=0.1)
    write_task_vector(vector, origin, folder / "harm_vector")
    harm_ref = publish("harm_vector", _describe_vector(vector, base.model_digest))
    backbone = Backbone(
        model_digest=base.model_digest,
        tokenizer_digest=base.tokenizer_digest,
        harm_vector_digest=harm_ref.digest,
        harm_scale=harm_scale,
    )
    subtract_task_vector(dict(model.named_parameters()), vector, harm_scale)
    adapted = add_random_adapter(model, attributes, arm_seed, shape=shape)
    save_adapter(adapted, folder / "arm")
    canary = record_probe(adapted, [5, 6, 7], {attributes[0]: 1.0})
    adapter = AdapterMetadata(
        attributes=list(attributes),
        rank_shared=shape.rank_shared,
        rank_conditioned=shape.rank_conditioned,
        alpha=8.0,
        loss_form="reference",
        beta=dict.fromkeys(attributes, 2.0),
        backbone=backbone,
        canary=canary,
        parameters=sum(p.numel() for name, p in adapted.named_parameters() if "pblora" in name),
    )
    manifest = ProfileManifest(
        base=publish("base", base),
        backbone=backbone,
        harm_vector=harm_ref,
        harm_scale=harm_scale,
        arm=publish("arm", adapter),
        attributes=list(attributes),
        loss_form="reference",
        guidance=guidance or Guidance(guidance_weight=2.0, safe_set_delta=6.0),
    )
    reference = GuidedModel(
        adapted, eos_token_ids(adapted, tokenizer), len(tokenizer), tuple(attributes), adapter.loss_form
    )
    return PublishedBundle(manifest, reference)


def _random_vector(parameters: dict[str, torch.Tensor], seed: int) -> SparseVector:
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in sorted(parameters) if name.endswith("proj.weight")]
    dense = {name: 0.01 * torch.randn(parameters[name].shape, generator=generator) for name in names}
    return select_top(LiveTensors(dense), 0.1)


def _describe_vector(vector: SparseVector, model_digest: str) -> TaskVectorMetadata:
    return TaskVectorMetadata(
        base_model_digest=model_digest,
        rule="global",
        density=0.1,
        kept=sum(len(tensor.values) for tensor in vector.tensors.values()),
        total=vector.total,
        norm=1.0,
        dense_norm=vector.dense_norm,
        tensors=len(vector.tensors),
    )


@dataclass
class ServedInstallation:
    """What the control plane would publish: tenants, keys and aliases, in snapshots whose revision grows."""

    store: ArtifactStore
    revision: int = 0
    tenants: dict[str, ServedTenant] = field(default_factory=dict)

    def add_tenant(self, name: str) -> None:
        """A tenant without keys and models."""
        self.tenants[name] = ServedTenant(id=f"ten_{name}", name=name, keys=[], models=[])

    def add_key(self, tenant: str, scopes: list[Scope] | None = None, expires_at: int | None = None) -> str:
        """A new key's token."""
        issued = issue_key()
        key = ServedKey(
            id=issued.key_id,
            secret_sha256=issued.secret_sha256,
            scopes=scopes if scopes is not None else ["generate"],
            expires_at=expires_at,
        )
        self._update(tenant, keys=[*self.tenants[tenant].keys, key])
        return issued.token

    def revoke_keys(self, tenant: str) -> None:
        """Take all keys away."""
        self._update(tenant, keys=[])

    def point(
        self,
        tenant: str,
        profile: str,
        manifest: ProfileManifest,
        *,
        version: int = 1,
        alias: str = "live",
        canary: ServedCanary | None = None,
    ) -> None:
        """Make an alias name a manifest, and give a share of it to another one."""
        model = ServedModel(
            profile=profile, alias=alias, version=version, created_at=1, manifest=manifest, canary=canary
        )
        others = [m for m in self.tenants[tenant].models if (m.profile, m.alias) != (profile, alias)]
        self._update(tenant, models=[*others, model])

    def drop(self, tenant: str, profile: str) -> None:
        """Delete a profile's aliases."""
        self._update(tenant, models=[m for m in self.tenants[tenant].models if m.profile != profile])

    def snapshot(self) -> ServingSnapshot:
        """The snapshot of this moment, one revision on."""
        self.revision += 1
        return ServingSnapshot(installation="inst", revision=self.revision, tenants=list(self.tenants.values()))

    def publish(self) -> ServingSnapshot:
        """Write the snapshot to the store."""
        snapshot = self.snapshot()
        self.store.put_bytes(SNAPSHOT_KEY, canonical_json(snapshot.model_dump(mode="json")))
        return snapshot

    def _update(self, tenant: str, **changes: object) -> None:
        self.tenants[tenant] = self.tenants[tenant].model_copy(update=changes)


@dataclass
class DecoderProcess:
    """A decoder that runs as a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    installation: ServedInstallation
    log: Path
    http: httpx.Client

    def states(self, token: str) -> dict[str, str]:
        """Bundle states by model; none while the snapshot with the key is on its way."""
        answer = self.http.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
        return {model["id"]: model["state"] for model in answer.json().get("data", [])}

    def metrics(self) -> str:
        """What Prometheus would read."""
        answer = self.http.get("/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
        assert answer.status_code == 200, answer.text
        return answer.text

    def wait_ready(self, token: str, *models: str, seconds: float = 30) -> None:
        """Until the models' bundles are ready."""
        wait_until(lambda: all(self.states(token).get(model) == "ready" for model in models), seconds)


@contextlib.contextmanager
def run_decoder(root: Path, installation: ServedInstallation, **settings: str) -> Iterator[DecoderProcess]:
    """``python -m armature_decoder`` on the local store ``root/store``."""
    port, log = reserve_port(), root / "decoder.log"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ARMATURE_STORE__PATH": str(root / "store"),
        "ARMATURE_HTTP__PORT": str(port),
        "ARMATURE_HTTP__METRICS_TOKEN": METRICS_TOKEN,
        "ARMATURE_DECODER__CACHE_DIR": str(root / "cache"),
        "ARMATURE_DECODER__POLL_INTERVAL": "0.1",
        **{f"ARMATURE_DECODER__{name.upper()}": value for name, value in settings.items()},
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "armature_decoder"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url, one_request_each = f"http://127.0.0.1:{port}", httpx.Limits(max_keepalive_connections=0)
    try:
        with httpx.Client(base_url=url, limits=one_request_each) as http:
            wait_until_ready(process, http, log)
            yield DecoderProcess(url, process, installation, log, http)
    finally:
        stop(process)


@pytest.fixture(scope="session")
def serving_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's decoder keeps its store and cache."""
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="session")
def serving_bundles(serving_root: Path) -> dict[str, PublishedBundle]:
    """Two bundles on one base."""
    store = LocalArtifactStore(serving_root / "store")
    return {name: publish_bundle(store, serving_root, seed=seed) for name, seed in {"one": 1, "two": 2}.items()}


@pytest.fixture(scope="session")
def decoder_process(serving_root: Path, serving_bundles: dict[str, PublishedBundle]) -> Iterator[DecoderProcess]:
    """A decoder that serves tenant ``acme`` (profiles care, other) and tenant ``zen`` (profile care)."""
    installation = ServedInstallation(LocalArtifactStore(serving_root / "store"))
    for tenant in ("acme", "zen"):
        installation.add_tenant(tenant)
    installation.point("acme", "care", serving_bundles["one"].manifest)
    installation.point("acme", "other", serving_bundles["two"].manifest)
    installation.point("zen", "calm", serving_bundles["two"].manifest)
    installation.publish()
    with run_decoder(serving_root, installation) as decoder:
        yield decoder
