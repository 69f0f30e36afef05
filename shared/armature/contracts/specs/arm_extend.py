"""``arm.extend``: add an attribute to a trained ARM, by training one row of numbers per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from armature.contracts.base import FieldError, Seed
from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.preferences import AttributeName
from armature.contracts.specs.arm import ArmTraining, PreferenceSampling
from armature.contracts.specs.base import (
    BaseSpec,
    Reference,
    artifact_reference,
    base_model_reference,
    dataset_reference,
)


class ArmExtendSpec(BaseSpec):
    """Output: ``arm``, which at weight 0 for the new attribute equals the ARM that it extends."""

    resumable: ClassVar[bool] = True
    phases: ClassVar[Mapping[str, float]] = {"load": 5.0, "train": 90.0}

    kind: Literal["arm.extend"] = "arm.extend"
    base_model: str
    harm_vector: str | None = Field(None, description="artifact id of the harm vector that the ARM was trained with")
    harm_scale: float = Field(1.5, ge=0, le=100)
    arm: str
    attribute: AttributeName = Field(description="the new attribute")
    pairs: Annotated[str, Field(description="data set usable as preference, with labels for the new attribute")]
    replay: bool = Field(False, description="also train on the pairs' labels for the old attributes")
    beta: float = Field(2.0, gt=0, le=1000, description="beta of the new attribute's loss")
    preferences: PreferenceSampling = PreferenceSampling()
    training: ArmTraining = ArmTraining()
    chat: ChatFormat = Field(AS_SENT, description="how dialogues are written, as a profile version sets it")
    seed: Seed = 0

    @model_validator(mode="after")
    def _training_fits(self) -> ArmExtendSpec:
        if self.training.weight_decay:
            raise FieldError("training.weight_decay", "must be 0: it would change the old attributes")
        if self.training.processes > 1:
            raise FieldError("training.processes", "must be 1: training one row per layer is not distributed")
        return self

    def references(self) -> dict[str, Reference]:
        """Return the backbone's parts, the ARM and the labelled pairs."""
        refs = {
            "base_model": base_model_reference(self.base_model),
            "arm": artifact_reference(self.arm, "arm", "adapter"),
            "pairs": dataset_reference(self.pairs, "pairs", "preference", self.attributes_added()),
        }
        if self.harm_vector is not None:
            refs["harm_vector"] = artifact_reference(self.harm_vector, "harm_vector", "task_vector")
        return refs

    def attributes_added(self) -> dict[str, AttributeName]:
        """Return the new attribute."""
        return {"spec.attribute": self.attribute}
