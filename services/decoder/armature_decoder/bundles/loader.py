"""From verified files to a model that can generate: parts that do not belong together never reach memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, CheckpointMetadata, TaskVectorMetadata
from armature.contracts.profiles import ProfileManifest
from armature.errors import AdapterBaseMismatch, ArtifactCorrupt, TokenizerMismatch
from armature.modeling.adapters import check_canary, load_adapter
from armature.modeling.checkpoints import digest_tokenizer
from armature.modeling.guided_model import GuidedModel, eos_token_ids
from armature.modeling.kv_memory import KvMemory
from armature.modeling.lean.model import stores_tied_head_twice
from armature.modeling.loading import load_config, load_safe_model, load_tokenizer
from armature_decoder.bundles.disk import DiskArtifact
from armature_decoder.engine.backends import BACKENDS, BackendName

Metadata = TypeVar("Metadata", CheckpointMetadata, TaskVectorMetadata, AdapterMetadata)

_building = threading.Lock()
"""While transformers builds a model it changes defaults of the whole process, such as torch's dtype: one at a time."""


@dataclass(frozen=True)
class BundleParts:
    """A bundle's artifacts on disk."""

    manifest: ProfileManifest
    base: DiskArtifact
    harm_vector: DiskArtifact | None
    arm: DiskArtifact | None


@dataclass(frozen=True)
class WorkingMemory:
    """Bytes set aside for a bundle beside its weights: at most these, and no more than its model could ever use."""

    kv: int
    """Keys and values of running requests."""
    prefixes: int
    """Computed beginnings of prompts."""
    max_slots: int

    def of(self, memory: KvMemory, context_length: int) -> WorkingMemory:
        """As much of it as a model of that memory and context has use for."""
        most = memory.needed(self.max_slots, 2 * self.max_slots, context_length)
        return WorkingMemory(min(self.kv, most), min(self.prefixes, most), self.max_slots)


@dataclass(frozen=True)
class LoadedBundle:
    """A model in memory, its tokenizer, and how many tokens it can attend to.

    ``encoding`` is the one thread that reads its prompts: a slow chat template keeps nobody else's model waiting.
    """

    model: GuidedModel
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    working: WorkingMemory
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoding"), compare=False)


@dataclass(frozen=True)
class BundleLoader:
    """Loads bundles onto one device. ``dtype`` None keeps the checkpoint's own."""

    device: str
    dtype: torch.dtype | None
    working: WorkingMemory
    backend: BackendName = "auto"

    def required_bytes(self, parts: BundleParts) -> int:
        """What the weights will take and what is set aside beside them, before anything is loaded."""
        base, config = _metadata(parts.base, CheckpointMetadata), load_config(parts.base.folder)
        dtype = self.dtype or getattr(torch, base.dtype)
        adapter = _metadata(parts.arm, AdapterMetadata).parameters if parts.arm else 0
        numbers = base.parameters
        if self.backend != "hf" and stores_tied_head_twice(config, self.device):
            numbers += config.vocab_size * config.hidden_size
        # float32 whatever the dtype: so much the keys and values take on a CPU
        working = self.working.of(KvMemory.of(config, torch.float32.itemsize), base.context_length)
        return numbers * int(dtype.itemsize) + adapter * torch.float32.itemsize + working.kv + working.prefixes

    def load(self, parts: BundleParts) -> LoadedBundle:
        """Base minus harm vector, then the adapter, then the adapter's canary.

        Raises:
            AdapterBaseMismatch, TokenizerMismatch: The parts were not made for each other.
            ArtifactCorrupt: A part is not what its manifest says.
            InvalidCheckpoint: A part can not be read, or the adapter has no effect.
        """
        check_parts(parts)
        with _building:
            return self._build(parts)

    def _build(self, parts: BundleParts) -> LoadedBundle:
        tokenizer = load_tokenizer(parts.base.folder)
        base = _metadata(parts.base, CheckpointMetadata)
        if digest_tokenizer(tokenizer) != base.tokenizer_digest:
            raise TokenizerMismatch("the base model's tokenizer is not the one in its manifest")
        harm_folder = parts.harm_vector.folder if parts.harm_vector else None
        model = load_safe_model(
            parts.base.folder, harm_folder, parts.manifest.harm_scale, device=self.device, dtype=self.dtype
        )
        adapter = _metadata(parts.arm, AdapterMetadata) if parts.arm else None
        if parts.arm and adapter:
            model = load_adapter(model, parts.arm.folder)
            _check_attributes(parts.manifest, adapter, model.active_peft_config.attributes)
            check_canary(model, adapter.canary)
        guided = GuidedModel(
            model=BACKENDS[self.backend](model.requires_grad_(False).eval()),
            eos_ids=eos_token_ids(model, tokenizer),
            vocab_size=len(tokenizer),
            attributes=tuple(adapter.attributes) if adapter else (),
            loss_form=adapter.loss_form if adapter else None,
        )
        working = self.working.of(guided.kv_memory, base.context_length)
        context_length = min(base.context_length, guided.kv_memory.longest(working.kv))
        return LoadedBundle(guided, tokenizer, context_length, working)

    def free_memory(self) -> None:
        """Hand the device's cached blocks back after a model was let go."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def check_parts(parts: BundleParts) -> None:
    """Compare by digest what was made for what: vector and adapter must name this base, and the adapter its vector.

    Raises:
        AdapterBaseMismatch, TokenizerMismatch: Naming both digests.
    """
    chosen, base = parts.manifest.backbone, _metadata(parts.base, CheckpointMetadata)
    if chosen.tokenizer_digest != base.tokenizer_digest:
        raise TokenizerMismatch(f"made for tokenizer {chosen.tokenizer_digest}, the base has {base.tokenizer_digest}")
    _same("model_digest", chosen.model_digest, base.model_digest)
    if parts.harm_vector:
        vector = _metadata(parts.harm_vector, TaskVectorMetadata)
        _same("model_digest of the harm vector", vector.base_model_digest, base.model_digest)
    if parts.arm is None:
        return
    trained_on = _metadata(parts.arm, AdapterMetadata).backbone
    if trained_on.tokenizer_digest != chosen.tokenizer_digest:
        raise TokenizerMismatch(f"the ARM was trained with tokenizer {trained_on.tokenizer_digest}")
    _same("model_digest of the ARM", trained_on.model_digest, chosen.model_digest)
    _same("harm_vector_digest of the ARM", trained_on.harm_vector_digest, chosen.harm_vector_digest)
    if chosen.harm_vector_digest:
        _same("harm_scale of the ARM", trained_on.harm_scale, chosen.harm_scale)


def _check_attributes(manifest: ProfileManifest, adapter: AdapterMetadata, loaded: list[str]) -> None:
    """A preference's weights go to the adapter by position, so everybody must list the names in one order (trap T8)."""
    if not manifest.attributes == adapter.attributes == loaded:
        raise ArtifactCorrupt("profile, manifest and adapter file do not list the same attributes in the same order")


def _same(what: str, made_for: object, found: object) -> None:
    if made_for != found:
        raise AdapterBaseMismatch(f"{what}: made for {made_for}, found {found}")


def _metadata(artifact: DiskArtifact, kind: type[Metadata]) -> Metadata:
    metadata = artifact.manifest.metadata
    if not isinstance(metadata, kind):
        raise ArtifactCorrupt(f"artifact {artifact.digest} is a {metadata.type}, which is not what the profile says")
    return metadata
