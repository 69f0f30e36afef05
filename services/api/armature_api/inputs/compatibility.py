"""Refuse artifacts and specs that do not fit each other, before a job or a profile version exists."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts import compatibility
from armature.contracts.artifacts import AdapterMetadata, CheckpointMetadata, TaskVectorMetadata
from armature.contracts.specs.base import BaseSpec
from armature.db.models import Artifact
from armature.errors import ContextLengthExceeded, InvalidRequest, NotFound
from armature_api.artifacts.service import manifest_of
from armature_api.kit.queries import visible


@dataclass(frozen=True)
class Combination:
    """The artifacts that a request combines; ``prefix`` is where it names them, such as ``spec.``."""

    base: Artifact
    harm_vector: Artifact | None = None
    harm_scale: float = 0.0
    arm: Artifact | None = None
    arm_backbone: Artifact | None = None
    """The model that the ARM is on, where it guides another one."""
    prefix: str = ""

    def parts(self) -> compatibility.Parts:
        """Read the artifacts' metadata."""
        return compatibility.Parts(
            base=_checkpoint(self.base),
            harm_vector=None if self.harm_vector is None else _task_vector(self.harm_vector),
            harm_vector_digest=None if self.harm_vector is None else self.harm_vector.digest,
            harm_scale=self.harm_scale,
            adapter=None if self.arm is None else adapter_metadata(self.arm),
            arm_backbone=None if self.arm_backbone is None else _checkpoint(self.arm_backbone),
        )


def check_combination(combination: Combination) -> None:
    """Refuse artifacts that were not made for each other.

    Raises:
        AdapterBaseMismatch: The harm vector was taken from another base, or the ARM was trained on another backbone.
        TokenizerMismatch: The ARM, or the model that it is on, has another tokenizer than the base.
    """
    combination.parts().check(combination.prefix)
    if combination.arm_backbone is not None:
        check_vocabulary(combination.base, combination.arm_backbone, f"{combination.prefix}arm")


def check_vocabulary(base: Artifact, backbone: Artifact, param: str) -> None:
    """Refuse a separate ``backbone`` with other token ids than ``base``, as far as metadata tells.

    Raises:
        TokenizerMismatch: They differ.
    """
    compatibility.check_vocabulary(_checkpoint(base), _checkpoint(backbone), param)


def own_backbone(session: Session, tenant_id: str, combination: Combination) -> Artifact | None:
    """Find the separate model that the ARM was trained on; None for an ARM that is on the base itself.

    Raises:
        NotFound: The model was deleted, or the tenant may not see it.
    """
    parts = combination.parts()
    if combination.arm is None or parts.adapter is None or parts.adapter.backbone_kind != "separate":
        return None
    if parts.arm_is_on_the_base():
        return None
    digests = [parent.digest for parent in manifest_of(combination.arm).parents]
    made_from = select(Artifact).where(Artifact.digest.in_(digests), visible(Artifact, tenant_id))
    for artifact in session.scalars(made_from.where(Artifact.kind == "checkpoint").order_by(Artifact.id)):
        if _checkpoint(artifact).model_digest == parts.adapter.backbone.model_digest:
            return artifact
    message = "the model that the ARM was trained on is not there any more"
    raise NotFound(message, param=f"{combination.prefix}arm")


def check_shape(spec: BaseSpec, model: Artifact) -> None:
    """Refuse ranks and layers that exceed the model's, as far as its metadata tells.

    Raises:
        InvalidRequest: A rank exceeds the hidden size, or a layer does not exist; ``param`` is the spec's field.
    """
    shape = _checkpoint(model)
    for param, rank in spec.ranks_asked().items():
        if shape.hidden_size is not None and rank > shape.hidden_size:
            raise InvalidRequest(f"must not exceed the model's hidden size, {shape.hidden_size}", param=param)
    for param, layers in spec.layers_asked().items():
        if shape.layers is not None and max(layers, default=0) >= shape.layers:
            raise InvalidRequest(f"the model has layers 0 to {shape.layers - 1}", param=param)


def check_context(spec: BaseSpec, combination: Combination) -> None:
    """Refuse answers that leave no room for a prompt in the shortest context of the models involved.

    Raises:
        ContextLengthExceeded: ``param`` is the spec's field.
    """
    base, arm_backbone = combination.base, combination.arm_backbone
    models = [base] if arm_backbone is None else [base, arm_backbone]
    context = min(_checkpoint(model).context_length for model in models)
    for param, tokens in spec.tokens_asked().items():
        if tokens >= context:
            raise ContextLengthExceeded(f"{tokens} tokens leave no prompt of a context of {context}", param=param)


def adapter_metadata(arm: Artifact) -> AdapterMetadata:
    """Read an ARM's metadata."""
    metadata = manifest_of(arm).metadata
    assert isinstance(metadata, AdapterMetadata)
    return metadata


def check_attributes(adapter: AdapterMetadata, attributes: Collection[str], param: str) -> None:
    """Refuse attributes that the ARM was not trained on.

    Raises:
        InvalidRequest: An attribute is unknown; the message names the first one.
    """
    for attribute in attributes:
        if attribute not in adapter.attributes:
            known = ", ".join(adapter.attributes)
            raise InvalidRequest(
                f"the ARM does not know {attribute!r}; it knows {known}", param=param, code="unknown_attribute"
            )


def check_new_attribute(adapter: AdapterMetadata, attribute: str, param: str) -> None:
    """Refuse to add an attribute that the ARM has already.

    Raises:
        InvalidRequest: The ARM has it.
    """
    if attribute in adapter.attributes:
        raise InvalidRequest(f"the ARM knows {attribute} already", param=param)


def _checkpoint(artifact: Artifact) -> CheckpointMetadata:
    metadata = manifest_of(artifact).metadata
    assert isinstance(metadata, CheckpointMetadata)
    return metadata


def _task_vector(artifact: Artifact) -> TaskVectorMetadata:
    metadata = manifest_of(artifact).metadata
    assert isinstance(metadata, TaskVectorMetadata)
    return metadata
