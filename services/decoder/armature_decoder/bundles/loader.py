"""The loader: from verified files to a model that generates.

Parts that do not fit together never reach memory.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, CheckpointMetadata, TaskVectorMetadata
from armature.contracts.compatibility import Parts, check_backbone
from armature.contracts.profiles import ProfileManifest
from armature.errors import ArtifactCorrupt
from armature.inference.kv_memory import KvMemory
from armature.inference.lean.architecture import unfit_field
from armature.inference.lean.weights import rotation_bytes, stores_tied_head_twice
from armature.inference.malloc import give_back_freed_memory
from armature.inference.model import RUNS_LEAN, BackendName, GuidedModel, eos_token_ids, vocabulary_size
from armature.inference.request import StreamCount
from armature.inference.self_test import self_test
from armature.inference.shared_weights import SharedWeights
from armature.modeling.adapters.arm import attach_stored
from armature.modeling.adapters.files import read_adapter
from armature.modeling.checkpoints.loading import load_config, load_safe_model
from armature.modeling.tokenization.vocabularies import require_same_tokens
from armature_decoder.bundles.disk import DiskArtifact
from armature_decoder.bundles.shared_bases import BaseParts, SharedBases
from armature_decoder.bundles.throttle import LoaderThrottle
from armature_decoder.bundles.tokenizers import SharedTokenizers
from armature_decoder.engine.device_lock import DeviceLock
from armature_decoder.engine.scheduler import KvBudget

Metadata = TypeVar("Metadata", CheckpointMetadata, TaskVectorMetadata, AdapterMetadata)

_build_lock = threading.Lock()
"""transformers sets process-wide defaults, such as torch's dtype, while it builds a model: one build at a time."""

_ADAPTER_COPIES = 3
"""Bound on an adapter's size in memory over its parameters: where up to three linears are fused into one product, B
has a column of blocks for each."""


@dataclass(frozen=True)
class BundleParts:
    """A bundle's artifacts on disk."""

    manifest: ProfileManifest
    base: DiskArtifact
    harm_vector: DiskArtifact | None = None
    arm: DiskArtifact | None = None
    arm_backbone: DiskArtifact | None = None

    @property
    def bases(self) -> list[BaseParts]:
        """Parts of the dense weights.

        The model that is sampled from is first, then the ARM's own model if there is one.
        """
        sampled = BaseParts(self.base, self.harm_vector, self.manifest.harm_scale)
        return [sampled, *([BaseParts(self.arm_backbone)] if self.arm_backbone else [])]

    @property
    def checkpoints(self) -> list[DiskArtifact]:
        """The checkpoints of :attr:`bases`."""
        return [base.checkpoint for base in self.bases]


@dataclass(frozen=True)
class Needs:
    """Bytes of a bundle: its ``own``, and by key those of its dense weights, which it may share."""

    own: int
    bases: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of the bundle if it shares nothing."""
        return self.own + sum(self.bases.values())


@dataclass(frozen=True)
class WorkingMemory:
    """Upper bounds on the bytes reserved for a bundle beside its weights."""

    kv: int
    """Keys and values of running requests."""
    prefixes: int
    """Cached prefixes of prompts."""
    max_slots: int

    def of(self, memory: KvMemory, context_length: int) -> WorkingMemory:
        """Reduce the bounds to what a model of this memory and context length can use."""
        batch = memory.needed(2 * self.max_slots, 3 * self.max_slots, context_length)
        most = batch + memory.needed(2, 3, context_length)  # a prompt in prefill
        return WorkingMemory(min(self.kv, most), min(self.prefixes, most), self.max_slots)


@dataclass(frozen=True)
class LoadedBundle:
    """A model in memory with its tokenizer and context length; keys and values may have room for less.

    ``arm_tokenizer`` belongs to an ARM on a model of its own, which may have another chat template.
    ``encoding`` is the bundle's one thread for encoding prompts: a slow chat template delays no other bundle.
    """

    model: GuidedModel
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    working: WorkingMemory
    arm_tokenizer: PreTrainedTokenizerBase | None = None
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoding"), compare=False)

    @property
    def budget(self) -> KvBudget:
        """The bytes that keys and values of its requests share."""
        return KvBudget(self.model.kv_memory, self.working.kv)

    def context_of(self, streams: StreamCount, longest_prompt: int = 0) -> int:
        """Positions that each stream of a request may grow to, with prompts of that length."""
        return min(self.context_length, self.budget.context_of(streams, longest_prompt))


@dataclass(frozen=True)
class BundleLoader:
    """Loads bundles onto one device. ``dtype`` None keeps the checkpoint's own."""

    device: str
    dtype: torch.dtype | None
    working: WorkingMemory
    backend: BackendName = "auto"
    throttle: LoaderThrottle = field(default_factory=lambda: LoaderThrottle(DeviceLock()), compare=False)
    tokenizers: SharedTokenizers = field(default_factory=SharedTokenizers, compare=False)

    def needs(self, parts: BundleParts) -> Needs:
        """Return the bytes of the weights and of the working memory beside them, before anything is loaded."""
        adapter = _metadata(parts.arm, AdapterMetadata).parameters if parts.arm else 0
        bases = {base.key: self._weights_bytes(base.checkpoint) for base in parts.bases}
        memories = [KvMemory.of(load_config(part.folder), self._dtype(part).itemsize) for part in parts.checkpoints]
        memory = dataclasses.replace(memories[0], arm=memories[1]) if parts.arm_backbone else memories[0]
        working = self.working.of(memory, _context_length(parts))
        own = _ADAPTER_COPIES * adapter * torch.float32.itemsize + working.kv + working.prefixes
        return Needs(own, bases)

    def _weights_bytes(self, checkpoint: DiskArtifact) -> int:
        numbers, config = _metadata(checkpoint, CheckpointMetadata).parameters, load_config(checkpoint.folder)
        size = self._dtype(checkpoint).itemsize
        if self.backend == "hf" or unfit_field(config):
            return numbers * size
        if stores_tied_head_twice(config, self.device):
            numbers += config.vocab_size * config.hidden_size
        return numbers * size + rotation_bytes(config)

    def _dtype(self, checkpoint: DiskArtifact) -> torch.dtype:
        own: torch.dtype = getattr(torch, _metadata(checkpoint, CheckpointMetadata).dtype)
        return self.dtype or own

    def load(self, parts: BundleParts, shared: SharedBases) -> LoadedBundle:
        """Load a bundle, and test its adapter.

        Dense weights are loaded unless they are in memory, then the adapter, which has to repeat its probe.

        Args:
            parts: What to load.
            shared: The bases in memory; those of the bundle are claimed.

        Raises:
            AdapterBaseMismatch, TokenizerMismatch: The parts were not made for each other.
            ArtifactCorrupt: A part is not what its manifest says.
            InvalidCheckpoint: A part can not be read, or the adapter has no effect.
        """
        with self.throttle.slow_down():
            return self._load(parts, shared)

    def _load(self, parts: BundleParts, shared: SharedBases) -> LoadedBundle:
        check_parts(parts)
        tokenizer, *others = (
            self.tokenizers.load(checkpoint, _metadata(checkpoint, CheckpointMetadata))
            for checkpoint in parts.checkpoints
        )
        for other in others:
            require_same_tokens(tokenizer, other, "arm")
        bases = [shared.load(base.key, partial(self._load_base, base)) for base in parts.bases]
        models = [base.modules() for base in bases]
        eos_ids, adapter = eos_token_ids(models[0], tokenizer), None
        if parts.arm:
            adapter = _metadata(parts.arm, AdapterMetadata)
            stored = read_adapter(parts.arm.folder)
            _check_attributes(parts.manifest, adapter, stored.config.attributes)
            models[-1] = adapted = attach_stored(models[-1], stored)
            self_test(bases[-1], adapted, adapter.canary)
        model, *own = (base.run(modules) for base, modules in zip(bases, models, strict=True))
        guided = GuidedModel(
            model=model,
            eos_ids=eos_ids,
            vocab_size=vocabulary_size(tokenizer, *models),
            attributes=tuple(adapter.attributes) if adapter else (),
            loss_form=adapter.loss_form if adapter else None,
            arm=own[0] if own else None,
        )
        context_length = _context_length(parts)
        working = self.working.of(guided.kv_memory, context_length)
        return LoadedBundle(guided, tokenizer, context_length, working, arm_tokenizer=others[0] if others else None)

    def _load_base(self, parts: BaseParts) -> SharedWeights:
        vector = parts.harm_vector.folder if parts.harm_vector else None
        with _build_lock:
            model = load_safe_model(
                parts.checkpoint.folder, vector, parts.harm_scale, device=self.device, dtype=self.dtype
            )
        return SharedWeights(model, lean=RUNS_LEAN[self.backend](model))

    def free_memory(self) -> None:
        """Return memory of a dropped model to the system: the host's, and the device's cached blocks."""
        give_back_freed_memory()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def check_parts(parts: BundleParts) -> None:
    """Refuse artifacts that were not made for each other, or not for the profile's backbone.

    Raises:
        AdapterBaseMismatch, TokenizerMismatch: The digests differ; the message has both.
    """
    vector, arm, own = parts.harm_vector, parts.arm, parts.arm_backbone
    described = Parts(
        base=_metadata(parts.base, CheckpointMetadata),
        harm_vector=_metadata(vector, TaskVectorMetadata) if vector else None,
        harm_vector_digest=vector.digest if vector else None,
        harm_scale=parts.manifest.harm_scale,
        adapter=_metadata(arm, AdapterMetadata) if arm else None,
        arm_backbone=_metadata(own, CheckpointMetadata) if own else None,
    )
    check_backbone("the profile", parts.manifest.backbone, described.backbone())
    described.check()


def _context_length(parts: BundleParts) -> int:
    """Return the context length of the bundle: the shortest of its models'."""
    return min(_metadata(part, CheckpointMetadata).context_length for part in parts.checkpoints)


def _check_attributes(manifest: ProfileManifest, adapter: AdapterMetadata, loaded: list[str]) -> None:
    """Refuse attributes in another order than the adapter's.

    A preference's weights reach the adapter by position (docs/traps.md, 8).
    """
    if not manifest.attributes == adapter.attributes == loaded:
        raise ArtifactCorrupt("profile, manifest and adapter file do not list the same attributes in the same order")


def _metadata(artifact: DiskArtifact, kind: type[Metadata]) -> Metadata:
    metadata = artifact.manifest.metadata
    if not isinstance(metadata, kind):
        raise ArtifactCorrupt(f"artifact {artifact.digest} is a {metadata.type}, which is not what the profile says")
    return metadata
