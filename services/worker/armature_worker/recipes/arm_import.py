"""``arm.import``: turn an adapter trained by PARM's own code, an untrusted file, into an ARM."""

from __future__ import annotations

import shutil

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.specs.arm_import import ArmImportSpec
from armature.modeling.adapters.files import CONFIG, WEIGHTS, write_adapter
from armature.modeling.adapters.parm import read_parm_adapter
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.modeling.tokenization.prompts import encode_text
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents, write_metadata
from armature_worker.models.arm import record_self_test
from armature_worker.models.backbone import backbone_on_meta, describe_backbone
from armature_worker.models.selection import report_share

_FILES = {"adapter_config": CONFIG, "adapter_weights": WEIGHTS}
_PROBE_TEXT = "Tell me about your day."


def run(spec: ArmImportSpec, context: RecipeContext) -> RecipeResult:
    """Import an ARM. Output: ``arm``.

    Raises:
        InvalidAdapter: The files are not a PARM adapter for this backbone, or it has no effect.
        InvalidSafetensors: The weights are malformed or hold NaN.
        AdapterBaseMismatch: The harm vector was made from another base model.
    """
    backbone = describe_backbone(spec, context)
    context.progress("check", 0, 2)
    untrusted = context.workdir / "untrusted"
    untrusted.mkdir()
    for role, name in _FILES.items():
        shutil.copyfile(context.files[role], untrusted / name)
    model = backbone_on_meta(context)
    adapter = read_parm_adapter(untrusted, model, spec.attributes, spec.loss_form)
    share = report_share(context, model, (f"{name}.weight" for name in adapter.layers))
    folder = context.workdir / "arm"
    write_adapter(adapter, folder)
    context.progress("probe", 1, 2)
    ids = encode_text(load_tokenizer(context.artifacts["base_model"].path), _PROBE_TEXT)
    metadata = AdapterMetadata(
        attributes=spec.attributes,
        rank_shared=adapter.config.rank_shared,
        rank_conditioned=adapter.config.rank_conditioned,
        alpha=adapter.config.lora_alpha,
        loss_form=spec.loss_form,
        beta=dict.fromkeys(spec.attributes, spec.beta),
        backbone=backbone,
        backbone_kind="safe" if backbone.harm_vector_digest else "base",
        canary=record_self_test(spec, context, folder, ids),
        parameters=sum(tensor.numel() for weights in adapter.layers.values() for tensor in weights),
        selected_share=share,
    )
    write_metadata(metadata, folder)
    context.progress("probe", 2, 2)
    return RecipeResult([Output("arm", folder, metadata, parents(context))])
