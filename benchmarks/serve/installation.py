"""A store of random (checkpoint, adapter) pairs and a snapshot with the live one."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from armature.contracts.artifacts import AdapterMetadata, ArtifactMetadata, ArtifactRef, Backbone, Producer
from armature.contracts.base import canonical_json
from armature.contracts.preferences import ATTRIBUTES, Guidance
from armature.contracts.profiles import LIVE_ALIAS, ProfileManifest
from armature.contracts.serving import SNAPSHOT_KEY, ServedKey, ServedModel, ServedTenant, ServingSnapshot
from armature.contracts.tenants import issue_key
from armature.modeling.adapters.arm import save_adapter
from armature.modeling.adapters.probe import record_probe
from armature.modeling.checkpoints.folder import describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.storage.artifacts import publish_folder
from armature.storage.local import LocalArtifactStore
from armature_cli.demo.tiny_model import build_tokenizer
from benchmarks.plan import Size
from benchmarks.shapes import adapt, random_model

PROFILE = "bench"
_TENANT = "ten_bench"
_SPECIALS = 5
"""Special tokens of the demo's tokenizer. All others are words, so each token of an answer is one event."""

_SPREAD = 0.1
"""Standard deviation of the adapters' entries, enough for the canary to see their effect in bfloat16."""


class Installation:
    """A store of pairs and one tenant with a key and a profile; :meth:`point` makes a pair live."""

    def __init__(self, store: Path) -> None:
        self._store = LocalArtifactStore(store)
        self._key = issue_key()
        self._manifests: list[ProfileManifest] = []
        self._words = 0
        self.version = 0
        """The live version of the profile; also the snapshot's revision."""

    @property
    def token(self) -> str:
        """The tenant's API key."""
        return self._key.token

    def publish_pair(self, folder: Path, size: Size, dtype: torch.dtype) -> int:
        """Publish one more pair, with random weights of its own.

        Returns:
            Number of parameters of the checkpoint.
        """
        model = random_model(size, "cpu", dtype, seed=len(self._manifests))
        self._words = model.config.vocab_size - _SPECIALS
        model.save_pretrained(folder / "base")
        build_tokenizer([f"w{number}" for number in range(self._words)]).save_pretrained(folder / "base")
        base = describe_checkpoint(open_checkpoint(folder / "base"), load_tokenizer(folder / "base"))
        backbone = Backbone(model_digest=base.model_digest, tokenizer_digest=base.tokenizer_digest)
        adapted = adapt(model, "all", "attention", _SPREAD)
        save_adapter(adapted, folder / "arm")
        shape = adapted.active_peft_config.shape
        adapter = AdapterMetadata(
            attributes=list(ATTRIBUTES),
            rank_shared=shape.rank_shared,
            rank_conditioned=shape.rank_conditioned,
            alpha=shape.alpha,
            loss_form="reference",
            beta=dict.fromkeys(ATTRIBUTES, 1.0),
            backbone=backbone,
            canary=record_probe(adapted, [5, 6, 7], {ATTRIBUTES[0]: 1.0}),
            parameters=sum(p.numel() for name, p in adapted.named_parameters() if "pblora" in name),
        )
        self._manifests.append(
            ProfileManifest(
                base=self._publish(folder / "base", base),
                backbone=backbone,
                harm_vector=None,
                harm_scale=0.0,
                arm=self._publish(folder / "arm", adapter),
                attributes=list(ATTRIBUTES),
                loss_form="reference",
                guidance=Guidance(),
            )
        )
        return base.parameters

    def point(self) -> int:
        """Make the next pair, in rotation, the live version; return its number."""
        self.version += 1
        manifest = self._manifests[self.version % len(self._manifests)]
        model = ServedModel(
            profile=PROFILE, alias=LIVE_ALIAS, version=self.version, created_at=self.version, manifest=manifest
        )
        key = ServedKey(id=self._key.key_id, secret_sha256=self._key.secret_sha256, scopes=["generate"])
        tenant = ServedTenant(id=_TENANT, name=PROFILE, keys=[key], models=[model])
        snapshot = ServingSnapshot(installation=PROFILE, revision=self.version, tenants=[tenant])
        self._store.put_bytes(SNAPSHOT_KEY, canonical_json(snapshot.model_dump(mode="json")))
        return self.version

    def prompt(self, tokens: int, draw: random.Random) -> str:
        """Draw a text of ``tokens`` tokens."""
        return " ".join(f"w{draw.randrange(self._words)}" for _ in range(tokens))

    def _publish(self, folder: Path, metadata: ArtifactMetadata) -> ArtifactRef:
        producer = Producer(kind="bench", spec={}, version="0")
        return publish_folder(self._store, _TENANT, folder, metadata=metadata, parents=[], producer=producer)[1]
