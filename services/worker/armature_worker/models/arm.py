"""The ARM that guides a job's subject: on the backbone itself, or on a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, Backbone, CheckpointMetadata
from armature.errors import InvalidRequest
from armature.inference.model import GuidedModel
from armature.modeling.adapters.arm import check_probe, load_adapter
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.vocabularies import require_same_tokens
from armature_worker.context.ports import RecipeContext
from armature_worker.models.backbone import describe_arm


@dataclass(frozen=True)
class OwnReader:
    """How a separate ARM's own model reads: its tokenizer, and how many tokens it can attend to."""

    tokenizer: PreTrainedTokenizerBase
    context_length: int


@dataclass(frozen=True)
class GuidingArm:
    """What is known of an ARM before its weights are loaded; ``own`` is None where it is on the backbone."""

    adapter: AdapterMetadata
    own: OwnReader | None = None


def find_arm(
    context: RecipeContext, backbone: Backbone, attributes: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> GuidingArm | None:
    """The job's ARM, if it has one.

    Args:
        context: The job.
        backbone: What is guided.
        attributes: That the ARM has to know.
        tokenizer: Of the backbone.

    Raises:
        AdapterBaseMismatch: The ARM is on neither the backbone nor the model that is there for it.
        InvalidRequest: It does not know one of the attributes.
        TokenizerMismatch: Its own model gives a token another id than the backbone.
    """
    if "arm" not in context.artifacts:
        return None
    adapter = describe_arm(context, backbone)
    if unknown := [name for name in attributes if name not in adapter.attributes]:
        raise InvalidRequest(
            f"the ARM does not know {', '.join(unknown)}", param="spec.attributes", code="unknown_attribute"
        )
    model = context.artifacts.get("arm_backbone")
    if model is None:
        return GuidingArm(adapter)
    assert isinstance(model.manifest.metadata, CheckpointMetadata)
    own = OwnReader(load_tokenizer(model.path), model.manifest.metadata.context_length)
    require_same_tokens(tokenizer, own.tokenizer, "spec.arm")
    return GuidingArm(adapter, own)


def attach_arm(model: GuidedModel, arm: GuidingArm, context: RecipeContext) -> GuidedModel:
    """The model as the ARM guides it. Its adapter has repeated its canary.

    Raises:
        AdapterBaseMismatch: It does not say here what it said at training.
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
