"""``arm.train``: train one preference-conditioned reward model for several attributes on a backbone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel

from armature.contracts.artifacts import AdapterMetadata, Backbone, Canary
from armature.contracts.specs.arm import ArmTrainSpec
from armature.modeling.adapters.arm import create_arm, find_targets, save_adapter
from armature.modeling.checkpoints.sharded_loading import shard_rest
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents, write_metadata
from armature_worker.data.preference_pairs import ArmData, LabelledPair, load_data
from armature_worker.data.tokenized import stream_seed
from armature_worker.models.arm import record_self_test
from armature_worker.models.backbone import (
    backbone_on_meta,
    backbone_tokenizer,
    describe_backbone,
    load_backbone,
)
from armature_worker.models.selection import report_share
from armature_worker.training.arm_plan import plan_training, settle
from armature_worker.training.arm_trainer import ArmTrainer, TrainingRecord

_INITIALISATION = 4
_PROBE_TOKENS = 64
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, None: None}


class _Adapter(NamedTuple):
    """What is known of the trained adapter: trainable parameters, share of the weights reached, self-test."""

    parameters: int
    selected_share: float
    canary: Canary


def run(spec: ArmTrainSpec, context: RecipeContext) -> RecipeResult:
    """Train an ARM. Output: ``arm``, an adapter for stock PEFT with its metadata in ``armature.json``.

    Raises:
        InvalidDataset: No pair is left within ``max_length``, or an attribute has no label at all.
        AdapterBaseMismatch: The harm vector was made from another base model.
        TokenizerMismatch: A separate backbone has other tokens than the base model.
        NonFiniteLoss: Training diverged.
        TrainingStalled: Training had no effect.
        InvalidAdapter: Training had too little effect to be worth serving.
    """
    backbone = describe_backbone(spec, context)
    context.progress("load", 0, 2)
    share = _report_share(spec, context)
    data = load_data(spec, context, backbone_tokenizer(context))
    used = plan_training(spec, data, context)
    spec = settle(spec, used)
    context.progress("load", 1, 2)
    folder = context.workdir / "arm"
    record, parameters = _train(spec, context, data, folder)
    canary = record_self_test(spec, context, folder, _probe_tokens(data.training[0]))
    adapter = _Adapter(parameters, share, canary)
    metadata = _describe(spec, backbone, data, record, adapter).model_copy(update={"trained_with": used})
    write_metadata(metadata, folder)
    for file in record.files:
        shutil.copy(file, folder)
    return RecipeResult([Output("arm", folder, metadata, parents(context))])


def _report_share(spec: ArmTrainSpec, context: RecipeContext) -> float:
    """Report the share of the weights that the adapter reaches, before any is loaded."""
    model = backbone_on_meta(context)
    return report_share(context, model, (f"{name}.weight" for name in find_targets(model, spec.adapter)))


def _create_adapter(spec: ArmTrainSpec, context: RecipeContext) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(spec.seed, _INITIALISATION))
        backbone = load_backbone(spec, context, _DTYPES[spec.training.dtype])
        model = create_arm(backbone, spec.attributes, spec.adapter, spec.loss.form)
    if spec.training.sharding == "fsdp":
        shard_rest(model, context.device)
    return model


def _train(spec: ArmTrainSpec, context: RecipeContext, data: ArmData, folder: Path) -> tuple[TrainingRecord, int]:
    """Save a trained adapter into ``folder``; returns the record and the number of its parameters."""
    model = _create_adapter(spec, context)
    record = ArmTrainer(model, data, spec, context, context.process_group).fit()
    save_adapter(model, folder)
    return record, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _probe_tokens(pair: LabelledPair) -> list[int]:
    example = pair.examples[0]
    return list(example.ids[: example.completion_start][-_PROBE_TOKENS:])


def _describe(
    spec: ArmTrainSpec, backbone: Backbone, data: ArmData, record: TrainingRecord, adapter: _Adapter
) -> AdapterMetadata:
    return AdapterMetadata(
        attributes=spec.attributes,
        adapter_kind=spec.adapter.kind,
        rank_shared=spec.adapter.rank_shared,
        rank_conditioned=spec.adapter.rank_conditioned,
        alpha=spec.adapter.alpha,
        loss_form=spec.loss.form,
        beta=dict.fromkeys(spec.attributes, spec.loss.beta),
        backbone=backbone,
        backbone_kind=spec.backbone_kind,
        canary=adapter.canary,
        parameters=adapter.parameters,
        validation=record.validation,
        rows={"pairs": len(data.training)},
        selected_share=adapter.selected_share,
    )
