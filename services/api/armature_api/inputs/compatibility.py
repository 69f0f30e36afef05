"""Whether a base, a harm vector and an ARM belong together: decided by digest, before anything is run or served."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import AdapterMetadata, Backbone, CheckpointMetadata, TaskVectorMetadata
from armature.contracts.specs.base import BaseSpec
from armature.db.models import Artifact
from armature.errors import AdapterBaseMismatch, ContextLengthExceeded, InvalidRequest, NotFound, TokenizerMismatch
from armature_api.artifacts.service import manifest_of
from armature_api.kit.queries import visible


@dataclass(frozen=True)
class Combination:
    """The parts that are to be used together. ``prefix`` is where a request names them, such as ``spec.``."""

    base: Artifact
    harm_vector: Artifact | None = None
    harm_scale: float = 0.0
    arm: Artifact | None = None
    arm_backbone: Artifact | None = None
    """The model that the ARM is on, where it guides another one."""
    prefix: str = ""

    def backbone(self) -> Backbone:
        """What the parts put under an ARM: the base, and the harm vector subtracted from it."""
        base = _checkpoint(self.base)
        return Backbone(
            model_digest=base.model_digest,
            tokenizer_digest=base.tokenizer_digest,
            harm_vector_digest=self.harm_vector.digest if self.harm_vector else None,
            harm_scale=self.harm_scale if self.harm_vector else 0.0,
        )

    def adapter(self) -> AdapterMetadata | None:
        """The ARM's description."""
        return None if self.arm is None else adapter_metadata(self.arm)


def check_combination(parts: Combination) -> None:
    """Refuse parts that were not made for each other.

    Raises:
        AdapterBaseMismatch: The harm vector was taken from another base, or the ARM was trained on another backbone.
        TokenizerMismatch: The ARM was trained with another tokenizer.
    """
    backbone, adapter = parts.backbone(), parts.adapter()
    if parts.harm_vector is not None:
        vector = manifest_of(parts.harm_vector).metadata
        assert isinstance(vector, TaskVectorMetadata)
        _same("model_digest", vector.base_model_digest, backbone.model_digest, f"{parts.prefix}harm_vector")
    if adapter is None:
        return
    trained_on, param = adapter.backbone, f"{parts.prefix}arm"
    if parts.arm_backbone is not None:
        check_vocabulary(parts.base, parts.arm_backbone, param)
        return
    if adapter.backbone_kind == "separate" and trained_on.model_digest != backbone.model_digest:
        message = "the ARM is on a model of its own (backbone separate); here its base model has to be that one"
        raise AdapterBaseMismatch(message, param=param)
    if trained_on.tokenizer_digest != backbone.tokenizer_digest:
        raise TokenizerMismatch("the ARM was trained with another tokenizer than the base model has", param=param)
    trained_scale = trained_on.harm_scale if trained_on.harm_vector_digest else 0.0
    _same("model_digest", trained_on.model_digest, backbone.model_digest, param)
    _same("harm_vector_digest", trained_on.harm_vector_digest, backbone.harm_vector_digest, param)
    _same("harm_scale", trained_scale, backbone.harm_scale, param)


def check_vocabulary(base: Artifact, backbone: Artifact, param: str) -> None:
    """Refuse a separate backbone that gives a token another id than the base, as far as their descriptions tell.

    Raises:
        TokenizerMismatch: It does.
    """
    ours, theirs = (_checkpoint(model).vocabulary_digest for model in (base, backbone))
    if ours and theirs and ours != theirs:
        message = "the separate backbone has other token ids, or another end of sequence, than the base model"
        raise TokenizerMismatch(message, param=param)


def own_backbone(session: Session, tenant_id: str, parts: Combination) -> Artifact | None:
    """The model that an ARM with a backbone of its own was trained on; None for an ARM that is on the base itself.

    Raises:
        NotFound: It is not there any more, or not for this tenant.
    """
    adapter = parts.adapter()
    if parts.arm is None or adapter is None or adapter.backbone_kind != "separate":
        return None
    if adapter.backbone == parts.backbone():
        return None
    digests = [parent.digest for parent in manifest_of(parts.arm).parents]
    made_from = select(Artifact).where(Artifact.digest.in_(digests), visible(Artifact, tenant_id))
    for artifact in session.scalars(made_from.where(Artifact.kind == "checkpoint").order_by(Artifact.id)):
        if _checkpoint(artifact).model_digest == adapter.backbone.model_digest:
            return artifact
    raise NotFound("the model that the ARM was trained on is not there any more", param=f"{parts.prefix}arm")


def check_shape(spec: BaseSpec, model: Artifact) -> None:
    """Refuse ranks and layers that the model has no room for, as far as its description tells.

    Raises:
        InvalidRequest: Naming the field.
    """
    shape = _checkpoint(model)
    for param, rank in spec.ranks_asked().items():
        if shape.hidden_size is not None and rank > shape.hidden_size:
            raise InvalidRequest(f"must not exceed the model's hidden size, {shape.hidden_size}", param=param)
    for param, layers in spec.layers_asked().items():
        if shape.layers is not None and max(layers, default=0) >= shape.layers:
            raise InvalidRequest(f"the model has layers 0 to {shape.layers - 1}", param=param)


def check_context(spec: BaseSpec, parts: Combination) -> None:
    """Refuse answers that leave no room for a prompt in what all of the models can attend to.

    Raises:
        ContextLengthExceeded: Naming the field.
    """
    models = [parts.base] if parts.arm_backbone is None else [parts.base, parts.arm_backbone]
    context = min(_checkpoint(model).context_length for model in models)
    for param, tokens in spec.tokens_asked().items():
        if tokens >= context:
            raise ContextLengthExceeded(f"{tokens} tokens leave no prompt of a context of {context}", param=param)


def adapter_metadata(arm: Artifact) -> AdapterMetadata:
    """An ARM's description."""
    metadata = manifest_of(arm).metadata
    assert isinstance(metadata, AdapterMetadata)
    return metadata


def check_attributes(adapter: AdapterMetadata, attributes: Collection[str], param: str) -> None:
    """Refuse attributes that the ARM was not trained on.

    Raises:
        InvalidRequest: Naming the first one.
    """
    for attribute in attributes:
        if attribute not in adapter.attributes:
            known = ", ".join(adapter.attributes)
            raise InvalidRequest(
                f"the ARM does not know {attribute!r}; it knows {known}", param=param, code="unknown_attribute"
            )


def check_new_attribute(adapter: AdapterMetadata, attribute: str, param: str) -> None:
    """Refuse an attribute that the ARM has.

    Raises:
        InvalidRequest: It has it.
    """
    if attribute in adapter.attributes:
        raise InvalidRequest(f"the ARM knows {attribute} already", param=param)


def _checkpoint(artifact: Artifact) -> CheckpointMetadata:
    metadata = manifest_of(artifact).metadata
    assert isinstance(metadata, CheckpointMetadata)
    return metadata


def _same(what: str, made_for: object, chosen: object, param: str) -> None:
    if made_for != chosen:
        raise AdapterBaseMismatch(f"{what}: made for {made_for}, chosen is {chosen}", param=param)
