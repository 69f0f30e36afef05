"""``arm.train``: one preference-conditioned reward model for several attributes, on top of the (safe) base."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.base import canonical_json
from armature.contracts.datasets import PreferenceRow
from armature.contracts.specs.arm import ArmTrainSpec
from armature.errors import InvalidDataset
from armature.modeling.adapters import create_arm, record_canary, save_adapter
from armature.modeling.loading import load_tokenizer
from armature.modeling.sharded_loading import shard_rest
from armature_worker.arm_margins import LabelledPair
from armature_worker.arm_training import ArmTrainer
from armature_worker.context import Output, RecipeContext, RecipeResult
from armature_worker.datasets import load_rows, report_rows, require_rows, stream_seed, tokenise
from armature_worker.lineage import parents
from armature_worker.subject import describe_backbone, load_backbone

METADATA = "armature.json"
_INITIALISATION = 4
_CANARY_TOKENS = 64
_SIGNS = {0: 1.0, 1: -1.0, None: 0.0}


def run(spec: ArmTrainSpec, context: RecipeContext) -> RecipeResult:
    """Output: ``arm``, an adapter that stock PEFT reads, with what decoding must know of it in ``armature.json``.

    Raises:
        InvalidDataset: No pair is left within ``max_length``, or an attribute has no label at all.
        AdapterBaseMismatch: The harm vector was made from another base model.
        NonFiniteLoss: Training diverged.
        TrainingStalled: Nothing was learned.
    """
    backbone = describe_backbone(spec, context)
    context.progress("load", 0, 2)
    tokenizer = load_tokenizer(context.artifacts["base_model"].path)
    pairs = _load_pairs(spec, context, tokenizer)
    context.progress("load", 1, 2)
    model = _create_adapter(spec, context)
    ArmTrainer(model, pairs, spec, context, context.ranks).fit()
    example = pairs[0].examples[0]
    uniform = {attribute: 1 / len(spec.attributes) for attribute in spec.attributes}
    metadata = AdapterMetadata(
        attributes=spec.attributes,
        rank_shared=spec.adapter.rank_shared,
        rank_conditioned=spec.adapter.rank_conditioned,
        alpha=spec.adapter.alpha,
        loss_form=spec.loss.form,
        beta=dict.fromkeys(spec.attributes, spec.loss.beta),
        backbone=backbone,
        canary=record_canary(model, example.ids[: example.completion_start][-_CANARY_TOKENS:], uniform),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    folder = context.workdir / "arm"
    save_adapter(model, folder)
    (folder / METADATA).write_bytes(canonical_json(metadata.model_dump(mode="json")))
    return RecipeResult([Output("arm", folder, metadata, parents(context))])


def _create_adapter(spec: ArmTrainSpec, context: RecipeContext) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(spec.seed, _INITIALISATION))
        model = create_arm(load_backbone(spec, context), spec.attributes, spec.adapter, spec.loss.form)
    if spec.training.sharding == "fsdp":
        shard_rest(model, context.device)
    return model


def _load_pairs(spec: ArmTrainSpec, context: RecipeContext, tokenizer: PreTrainedTokenizerBase) -> list[LabelledPair]:
    """All pairs, tokenised; those that the cut to ``max_length`` leaves without an answer are counted and dropped."""
    rows = load_rows(context.files["pairs"], PreferenceRow, context.label_attributes.get("pairs"))
    pairs = [
        LabelledPair(examples, [_SIGNS[row.labels.get(name)] for name in spec.attributes])
        for row in rows
        if (examples := tokenise(tokenizer, row.prompt, row.responses, spec.training.max_length))
    ]
    require_rows(pairs, len(rows), "spec.pairs")
    report_rows(context, "pairs", [pair.examples for pair in pairs], len(rows))
    for index, name in enumerate(spec.attributes):
        if not any(pair.signs[index] for pair in pairs):
            raise InvalidDataset(f"no pair has a label for {name}", param=f"spec.attributes.{index}")
    return pairs
