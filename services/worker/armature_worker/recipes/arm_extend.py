"""``arm.extend``: add an attribute to a trained ARM by training one new row of its conditioned core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.algorithms.attribute_rows import append_row, keep_last_row
from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.specs.arm import AdapterShape, ArmTrainSpec, PreferenceLoss
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.errors import InvalidRequest, TrainingStalled
from armature.modeling.adapters.arm import load_adapter, save_adapter
from armature.modeling.adapters.files import StoredAdapter, read_adapter, write_adapter
from armature.modeling.adapters.peft_pblora import adapter_layers
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents, write_metadata
from armature_worker.data.preference_pairs import ArmData, LabelledPair, load_data
from armature_worker.models.arm import record_self_test
from armature_worker.models.backbone import backbone_tokenizer, describe_arm, load_backbone
from armature_worker.training.arm_plan import plan_training, settle
from armature_worker.training.arm_trainer import ADAPTER, ArmTrainer, TrainingRecord


def run(spec: ArmExtendSpec, context: RecipeContext) -> RecipeResult:
    """Extend an ARM. Output: ``arm``.

    Raises:
        InvalidRequest: The ARM knows the attribute already.
        AdapterBaseMismatch: The ARM was trained on another backbone.
        InvalidDataset: No pair is left within ``max_length``, or none has a label that counts.
        NonFiniteLoss: Training diverged.
        TrainingStalled: Training had no effect.
    """
    old = describe_arm(spec, context)
    if spec.attribute in old.attributes:
        raise InvalidRequest(f"the ARM knows {spec.attribute} already", param="spec.attribute")
    context.progress("load", 0, 2)
    training = _training_spec(spec, old)
    data = _load_data(spec, training, context)
    used = plan_training(training, data, context)
    training = settle(training, used)
    context.progress("load", 1, 2)
    folder = context.workdir / "arm"
    record, parameters = _train(spec, training, data, context, folder)
    metadata = old.model_copy(
        update={
            "attributes": training.attributes,
            "beta": {**old.beta, spec.attribute: spec.beta},
            "canary": record_self_test(training, context, folder, old.canary.token_ids),
            "parameters": parameters,
            "validation": record.validation,
            "trained_with": used,
        }
    )
    write_metadata(metadata, folder)
    return RecipeResult([Output("arm", folder, metadata, parents(context))])


def _train(
    spec: ArmExtendSpec, training: ArmTrainSpec, data: ArmData, context: RecipeContext, folder: Path
) -> tuple[TrainingRecord, int]:
    """Save the extended adapter into ``folder``; returns the record and the number of its parameters."""
    dtype = getattr(torch, spec.training.dtype) if spec.training.dtype else None
    model = _append_attribute(load_backbone(training, context, dtype), spec.attribute, context)
    record = ArmTrainer(model, data, training, context, restrict=keep_last_row).fit()
    layers = [layer.weights(ADAPTER) for layer in adapter_layers(model).values()]
    if not any(bool(weights.w2[-1].any()) for weights in layers):
        raise TrainingStalled("the new attribute has no effect after all steps", param="spec.training")
    save_adapter(model, folder)
    return record, sum(tensor.numel() for weights in layers for tensor in weights)


def _training_spec(spec: ArmExtendSpec, old: AdapterMetadata) -> ArmTrainSpec:
    """Build the ``arm.train`` spec of the old attributes and the new one, in the old adapter's shape."""
    return ArmTrainSpec(
        base_model=spec.base_model,
        harm_vector=spec.harm_vector,
        harm_scale=spec.harm_scale,
        pairs=spec.pairs,
        attributes=[*old.attributes, spec.attribute],
        adapter=AdapterShape(
            kind=old.adapter_kind,
            rank_shared=old.rank_shared,
            rank_conditioned=old.rank_conditioned,
            alpha=old.alpha,
        ),
        loss=PreferenceLoss(form=old.loss_form, beta=spec.beta),
        preferences=spec.preferences,
        training=spec.training,
        chat=spec.chat,
        seed=spec.seed,
    )


def _load_data(spec: ArmExtendSpec, training: ArmTrainSpec, context: RecipeContext) -> ArmData:
    """Load the pairs with a label per attribute; without replay, the old attributes get no labels."""
    labelled = training if spec.replay else training.model_copy(update={"attributes": [spec.attribute]})
    data = load_data(labelled, context, backbone_tokenizer(context))
    missing = len(training.attributes) - len(labelled.attributes)
    return ArmData(_pad(data.training, missing), _pad(data.held_out, missing))


def _pad(pairs: Sequence[LabelledPair], missing: int) -> list[LabelledPair]:
    return [replace(pair, signs=[*[0.0] * missing, *pair.signs]) for pair in pairs]


def _append_attribute(backbone: PreTrainedModel, attribute: str, context: RecipeContext) -> PeftModel:
    """Load the ARM on its backbone, with a row of zeros for the new attribute."""
    config, layers = read_adapter(context.artifacts["arm"].path)
    folder: Path = context.workdir / "before"
    config.attributes = [*config.attributes, attribute]
    write_adapter(StoredAdapter(config, {name: append_row(weights) for name, weights in layers.items()}), folder)
    model = load_adapter(backbone, folder)
    for layer in adapter_layers(model).values():
        for tensor in layer.weights(ADAPTER):
            tensor.requires_grad = True
    return model
