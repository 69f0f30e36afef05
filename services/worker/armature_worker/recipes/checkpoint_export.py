"""``checkpoint.export``: write the safe base, with an optional ARM merged in at one preference."""

from __future__ import annotations

from pathlib import Path

from armature.algorithms.low_rank_deltas import LowRankDelta
from armature.contracts.artifacts import Backbone, CheckpointMetadata
from armature.contracts.preferences import preference_vector
from armature.contracts.specs.checkpoint_export import CheckpointExportSpec
from armature.errors import AdapterBaseMismatch
from armature.modeling.adapters.files import read_adapter
from armature.modeling.adapters.lora import merge_delta
from armature.modeling.checkpoints.configs import build_on_meta
from armature.modeling.checkpoints.editing import Edits, write_safe_checkpoint
from armature.modeling.checkpoints.folder import describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.modeling.checkpoints.task_vector import read_task_vector
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents, write_model_card
from armature_worker.models.backbone import describe_backbone

_CARD = """# {architecture}, edited

- base model: `{backbone.model_digest}`
- harm vector: `{backbone.harm_vector_digest}`, subtracted {backbone.harm_scale:g} times
- merged: {merged}
- weights of the base: {weights}

Config and tokenizer are the base model's own. License of the base: {license}."""


def run(spec: CheckpointExportSpec, context: RecipeContext) -> RecipeResult:
    """Export a checkpoint, tensor by tensor. Output: ``checkpoint``.

    Raises:
        AdapterBaseMismatch: The harm vector or the ARM was made for another model.
        InvalidRequest: The preference names an attribute that the ARM lacks.
    """
    backbone = describe_backbone(spec, context)
    base = context.artifacts["base_model"]
    assert isinstance(base.manifest.metadata, CheckpointMetadata)
    context.progress("edit", 0, 2)
    vector = read_task_vector(context.artifacts["harm_vector"].path) if spec.harm_vector else None
    delta, merged = _merge(spec, context) if spec.arm else (None, "nothing")
    folder = context.workdir / "checkpoint"
    try:
        write_safe_checkpoint(base.path, Edits(vector, backbone.harm_scale, delta), folder)
    except ValueError as error:
        raise AdapterBaseMismatch(f"the parts do not fit the base model: {error}") from error
    context.progress("describe", 1, 2)
    note = base.manifest.metadata.license_note
    metadata = describe_checkpoint(open_checkpoint(folder), load_tokenizer(folder), note)
    _describe(folder, base.manifest.metadata, backbone, merged)
    context.progress("describe", 2, 2)
    return RecipeResult([Output("checkpoint", folder, metadata, parents(context))])


def _merge(spec: CheckpointExportSpec, context: RecipeContext) -> tuple[LowRankDelta, str]:
    """Compute the ARM's delta at the preference, and its line of the model card."""
    arm = context.artifacts["arm"]
    adapter = read_adapter(arm.path)
    weights = preference_vector(spec.preference, adapter.config.attributes)
    skeleton = build_on_meta(open_checkpoint(context.artifacts["base_model"].path).config)
    preference = dict(zip(adapter.config.attributes, weights, strict=True))
    return merge_delta(adapter, weights, skeleton), f"the reward model `{arm.digest}` at {preference}"


def _describe(folder: Path, base: CheckpointMetadata, backbone: Backbone, merged: str) -> None:
    origin = base.origin
    text = _CARD.format(
        architecture=base.architecture,
        backbone=backbone,
        merged=merged,
        weights="as published" if origin is None else f"dequantised from {origin.format} {origin.quantisation}",
        license=base.license_note or "not recorded",
    )
    name = f"sha256:{backbone.model_digest}"
    write_model_card(folder, text, base_model=name, library_name="transformers", pipeline_tag="text-generation")
