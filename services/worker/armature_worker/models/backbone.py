"""The backbone of a job: a base model, less a harm vector if the spec names one."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, Backbone, CheckpointMetadata, TaskVectorMetadata
from armature.contracts.compatibility import Parts
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.arm_import import ArmImportSpec
from armature.contracts.specs.checkpoint_export import CheckpointExportSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.modeling.checkpoints.configs import build_on_meta
from armature.modeling.checkpoints.loading import load_config, load_safe_model, load_tokenizer
from armature.modeling.checkpoints.sharded_loading import load_sharded_model
from armature.modeling.tokenization.vocabularies import require_same_tokens
from armature_worker.context.ports import LocalArtifact, RecipeContext

BackboneSpec = ArmTrainSpec | ArmExtendSpec | ArmImportSpec | CheckpointExportSpec | EvaluationRunSpec
"""The specs that name a backbone."""
Metadata = TypeVar("Metadata", AdapterMetadata, CheckpointMetadata, TaskVectorMetadata)


def describe_backbone(spec: BackboneSpec, context: RecipeContext) -> Backbone:
    """Describe by digests the backbone that the spec names; everything else that the job has must fit it.

    Raises:
        AdapterBaseMismatch: The harm vector was made from another base model, or the ARM for another backbone.
        TokenizerMismatch: The ARM was trained with another tokenizer.
    """
    return _checked_parts(spec, context).backbone()


def describe_arm(spec: BackboneSpec, context: RecipeContext) -> AdapterMetadata:
    """Read the metadata of the job's ARM, on the backbone that the spec names or on a model of its own.

    Raises:
        AdapterBaseMismatch, TokenizerMismatch: As :func:`describe_backbone`.
    """
    adapter = _checked_parts(spec, context).adapter
    assert adapter is not None
    return adapter


def load_backbone(spec: BackboneSpec, context: RecipeContext, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load the backbone, or this rank's shard, onto the job's device in ``dtype`` or the stored dtype."""
    vector = context.artifacts.get("harm_vector")
    folder = None if vector is None else vector.path
    load = load_sharded_model if is_sharded(spec) else load_safe_model
    return load(_base(context).path, folder, spec.harm_scale, device=context.device, dtype=dtype)


def backbone_on_meta(context: RecipeContext) -> PreTrainedModel:
    """Build the backbone's modules and shapes, without memory."""
    return build_on_meta(load_config(_base(context).path))


def is_sharded(spec: BackboneSpec) -> bool:
    """Tell whether each process of the job holds a shard of the backbone only."""
    return isinstance(spec, ArmTrainSpec) and spec.training.sharding == "fsdp"


def backbone_tokenizer(context: RecipeContext) -> PreTrainedTokenizerBase:
    """Load the backbone's tokenizer.

    Raises:
        TokenizerMismatch: A separate backbone gives a token another id than the base model that it guides.
    """
    tokenizer = load_tokenizer(_base(context).path)
    if "backbone_model" in context.artifacts:
        guided = load_tokenizer(context.artifacts["base_model"].path)
        require_same_tokens(guided, tokenizer, "spec.backbone_model")
    return tokenizer


def _checked_parts(spec: BackboneSpec, context: RecipeContext) -> Parts:
    """Collect the metadata of the job's parts and refuse parts that do not fit; the API did so before."""
    artifacts = context.artifacts
    vector, arm, own = (artifacts.get(role) for role in ("harm_vector", "arm", "arm_backbone"))
    parts = Parts(
        base=_metadata(_base(context), CheckpointMetadata),
        harm_vector=_metadata(vector, TaskVectorMetadata) if vector else None,
        harm_vector_digest=vector.digest if vector else None,
        harm_scale=spec.harm_scale,
        adapter=_metadata(arm, AdapterMetadata) if arm else None,
        arm_backbone=_metadata(own, CheckpointMetadata) if own else None,
    )
    parts.check("spec.")
    return parts


def _metadata(artifact: LocalArtifact, kind: type[Metadata]) -> Metadata:
    metadata = artifact.manifest.metadata
    assert isinstance(metadata, kind)
    return metadata


def _base(context: RecipeContext) -> LocalArtifact:
    """Choose the backbone's checkpoint: a separate backbone's own, else the base model's."""
    return context.artifacts.get("backbone_model") or context.artifacts["base_model"]
