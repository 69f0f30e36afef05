"""ARMs that a job loads: a new one for its self-test, and one that guides an evaluated backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, Canary, CheckpointMetadata
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.arm_import import ArmImportSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.errors import InvalidRequest
from armature.inference.lean.architecture import supports
from armature.inference.model import GuidedModel
from armature.inference.self_test import self_test
from armature.inference.shared_weights import SharedWeights
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import adapter_layers
from armature.modeling.adapters.probe import check_probe, record_probe
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.checkpoints.sharded_loading import shard_rest
from armature.modeling.tokenization.vocabularies import require_same_tokens
from armature_worker.context.ports import RecipeContext
from armature_worker.models.backbone import describe_arm, is_sharded, load_backbone


@dataclass(frozen=True)
class SeparateModel:
    """The tokenizer and the context length, in tokens, of a separate ARM's own model."""

    tokenizer: PreTrainedTokenizerBase
    context_length: int


@dataclass(frozen=True)
class GuidingArm:
    """An ARM before its weights are loaded; ``own`` is None where it is on the backbone."""

    adapter: AdapterMetadata
    own: SeparateModel | None = None


def find_arm(spec: EvaluationRunSpec, context: RecipeContext, tokenizer: PreTrainedTokenizerBase) -> GuidingArm | None:
    """Describe the job's ARM; None if the job has none.

    Args:
        spec: The evaluation; the ARM has to know its attributes.
        context: The job.
        tokenizer: The guided backbone's.

    Raises:
        AdapterBaseMismatch: The ARM was trained neither on the backbone nor on the model given for it.
        InvalidRequest: The ARM does not know one of the attributes.
        TokenizerMismatch: The ARM's own model gives a token another id than the backbone.
    """
    if "arm" not in context.artifacts:
        return None
    adapter = describe_arm(spec, context)
    if unknown := [name for name in spec.attributes if name not in adapter.attributes]:
        raise InvalidRequest(
            f"the ARM does not know {', '.join(unknown)}", param="spec.attributes", code="unknown_attribute"
        )
    model = context.artifacts.get("arm_backbone")
    if model is None:
        return GuidingArm(adapter)
    assert isinstance(model.manifest.metadata, CheckpointMetadata)
    own = SeparateModel(load_tokenizer(model.path), model.manifest.metadata.context_length)
    require_same_tokens(tokenizer, own.tokenizer, "spec.arm")
    return GuidingArm(adapter, own)


def attach_arm(model: GuidedModel, arm: GuidingArm, context: RecipeContext) -> GuidedModel:
    """Load the ARM's adapter, check its probe and add it to ``model``.

    Raises:
        AdapterBaseMismatch: The base computes other log-probabilities for the probe than at training.
        InvalidAdapter: The adapter does, or its probe is incomplete.
    """
    carrier = model.model
    if arm.own is not None:
        carrier = load_model(context.artifacts["arm_backbone"].path, context.device)
    assert isinstance(carrier, PreTrainedModel)
    adapted = load_adapter(carrier, context.artifacts["arm"].path)
    check_probe(adapted, arm.adapter.canary)
    known = replace(model, attributes=tuple(arm.adapter.attributes), loss_form=arm.adapter.loss_form)
    if arm.own is None:
        return replace(known, model=adapted)
    return replace(known, arm=adapted, vocab_size=min(known.vocab_size, carrier.config.vocab_size))


def record_self_test(
    spec: ArmTrainSpec | ArmExtendSpec | ArmImportSpec, context: RecipeContext, folder: Path, token_ids: Sequence[int]
) -> Canary:
    """Load a new adapter as a decoder will, and record its probe under the uniform preference.

    The backbone is loaded anew, in its stored dtype: training may have had another one. Where the lean back end runs
    the backbone, the probe must pass there too. Drop the trained model before: there is no room for both.

    Raises:
        InvalidAdapter: The adapter can not be served, or has no effect worth serving.
    """
    backbone = load_backbone(spec, context)
    model = load_adapter(backbone, folder)
    sharded = is_sharded(spec)
    if sharded:
        for layer in adapter_layers(model).values():
            for tensor in layer.weights(model.active_adapter):
                tensor.requires_grad = True  # stays whole on every rank
        shard_rest(model, context.device)
    attributes = model.active_peft_config.attributes
    probe = record_probe(model, token_ids, dict.fromkeys(attributes, 1 / len(attributes)))
    if supports(backbone) and not sharded:
        self_test(SharedWeights(backbone, lean=True), model, probe)
    return probe
