"""``arm.export``: an ARM at one fixed preference as a plain LoRA. Loads no model, only adapter files."""

from __future__ import annotations

from armature.contracts.artifacts import AdapterMetadata, Backbone, LoraMetadata
from armature.contracts.preferences import preference_vector
from armature.contracts.specs.arm_export import ArmExportSpec
from armature.modeling.adapters.files import read_adapter
from armature.modeling.adapters.lora import write_lora
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents, write_metadata, write_model_card

_CARD = """# A plain LoRA of a preference-conditioned reward model

The adapter of digest `{arm}` at the preference {preference}, exactly: it gives the same logits.
It belongs on this model and on no other:

- base model: `{backbone.model_digest}`
- tokenizer: `{backbone.tokenizer_digest}`
- harm vector: `{backbone.harm_vector_digest}`, subtracted {backbone.harm_scale:g} times

What it samples from is the reward model itself: no guidance weight and no safe set.
The same facts for a program are in `armature.json`."""


def run(spec: ArmExportSpec, context: RecipeContext) -> RecipeResult:
    """Export an ARM. Output: ``lora``.

    Raises:
        InvalidRequest: The preference names an attribute that the ARM does not know, or weighs nothing.
    """
    arm = context.artifacts["arm"]
    context.progress("export", 0, 1)
    assert isinstance(arm.manifest.metadata, AdapterMetadata)
    backbone = arm.manifest.metadata.backbone
    adapter = read_adapter(arm.path)
    weights = preference_vector(spec.preference, adapter.config.attributes)
    preference = dict(zip(adapter.config.attributes, weights, strict=True))
    base_name = spec.base_name or _name_by_digest(backbone)
    folder = context.workdir / "lora"
    parameters = write_lora(adapter, weights, base_name, folder)
    rank = adapter.config.rank_shared + adapter.config.rank_conditioned
    metadata = LoraMetadata(preference=preference, rank=rank, backbone=backbone, parameters=parameters)
    write_metadata(metadata, folder)
    write_model_card(
        folder,
        _CARD.format(arm=arm.digest, preference=preference, backbone=backbone),
        base_model=base_name,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", f"base_model:adapter:{base_name}"],
    )
    context.progress("export", 1, 1)
    return RecipeResult([Output("lora", folder, metadata, parents(context))])


def _name_by_digest(backbone: Backbone) -> str:
    """Make a base name that no hub repository can have, so that loaders never find an unrelated model."""
    name = f"sha256:{backbone.model_digest}"
    if backbone.harm_vector_digest is not None:
        name += f" - {backbone.harm_scale:g} * sha256:{backbone.harm_vector_digest}"
    return name
