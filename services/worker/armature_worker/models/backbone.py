"""The model that a job trains on or judges: a base, and the harm vector subtracted from it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, Backbone, CheckpointMetadata, TaskVectorMetadata
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.arm_import import ArmImportSpec
from armature.contracts.specs.checkpoint_export import CheckpointExportSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.errors import AdapterBaseMismatch
from armature.modeling.checkpoints.loading import load_safe_model, load_tokenizer
from armature.modeling.checkpoints.sharded_loading import load_sharded_model
from armature.modeling.tokenization.vocabularies import require_same_tokens
from armature_worker.context.ports import LocalArtifact, RecipeContext

BackboneSpec = ArmTrainSpec | ArmExtendSpec | ArmImportSpec | CheckpointExportSpec | EvaluationRunSpec
"""The specs that name a backbone."""


def describe_backbone(spec: BackboneSpec, context: RecipeContext) -> Backbone:
    """Which backbone the spec names, by digests.

    Raises:
        AdapterBaseMismatch: The harm vector was made from another base model.
    """
    plain = _plain(_base(context))
    vector = context.artifacts.get("harm_vector")
    if vector is None:
        return plain
    assert isinstance(vector.manifest.metadata, TaskVectorMetadata)
    if vector.manifest.metadata.base_model_digest != plain.model_digest:
        raise AdapterBaseMismatch("the harm vector was made from another base model", param="spec.harm_vector")
    return plain.model_copy(update={"harm_vector_digest": vector.digest, "harm_scale": spec.harm_scale})


def describe_arm(context: RecipeContext, backbone: Backbone) -> AdapterMetadata:
    """The ARM of a job, on the backbone that its spec names or on a model of its own.

    Raises:
        AdapterBaseMismatch: It was trained on another one.
    """
    metadata = context.artifacts["arm"].manifest.metadata
    assert isinstance(metadata, AdapterMetadata)
    own = context.artifacts.get("arm_backbone")
    if metadata.backbone != (backbone if own is None else _plain(own)):
        raise AdapterBaseMismatch(
            "the ARM was trained on another base model, harm vector or scale than the ones given", param="spec.arm"
        )
    return metadata


def load_backbone(spec: BackboneSpec, context: RecipeContext, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The backbone on the job's device, in its stored dtype unless another is asked for.

    Of one that is sharded, this process's share.
    """
    vector = context.artifacts.get("harm_vector")
    folder = None if vector is None else vector.path
    sharded = isinstance(spec, ArmTrainSpec) and spec.training.sharding == "fsdp"
    load = load_sharded_model if sharded else load_safe_model
    return load(_base(context).path, folder, spec.harm_scale, device=context.device, dtype=dtype)


def backbone_tokenizer(context: RecipeContext) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer.

    Raises:
        TokenizerMismatch: A separate backbone gives a token another id than the base that it is to guide.
    """
    tokenizer = load_tokenizer(_base(context).path)
    if "backbone_model" in context.artifacts:
        guided = load_tokenizer(context.artifacts["base_model"].path)
        require_same_tokens(guided, tokenizer, "spec.backbone_model")
    return tokenizer


def _plain(model: LocalArtifact) -> Backbone:
    metadata = model.manifest.metadata
    assert isinstance(metadata, CheckpointMetadata)
    return Backbone(model_digest=metadata.model_digest, tokenizer_digest=metadata.tokenizer_digest)


def _base(context: RecipeContext) -> LocalArtifact:
    """The checkpoint that the backbone is made from: the base model's, unless the ARM has one of its own."""
    return context.artifacts.get("backbone_model") or context.artifacts["base_model"]
