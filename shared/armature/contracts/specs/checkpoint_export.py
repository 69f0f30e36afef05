"""``checkpoint.export``: write a safe base as full weights, or an ARM merged in at one preference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from armature.contracts.base import FieldError
from armature.contracts.preferences import FixedPreference
from armature.contracts.specs.base import BaseSpec, Queue, Reference, artifact_reference, base_model_reference


class CheckpointExportSpec(BaseSpec):
    """Output: ``checkpoint``, which stock transformers loads."""

    queue: ClassVar[Queue] = "cpu"
    phases: ClassVar[Mapping[str, float]] = {"edit": 70.0, "describe": 25.0}

    kind: Literal["checkpoint.export"] = "checkpoint.export"
    base_model: str
    harm_vector: str | None = Field(None, description="artifact id of a task vector that is subtracted")
    harm_scale: float = Field(1.5, ge=0, le=100, description="scale of the harm vector")
    arm: str | None = Field(None, description="artifact id of an adapter that is merged in at one preference")
    preference: FixedPreference | None = Field(None, description="preference of the merged ARM; None: equal weights")

    @model_validator(mode="after")
    def _something_changes(self) -> CheckpointExportSpec:
        if self.harm_vector is None and self.arm is None:
            raise ValueError("give a harm_vector, an arm or both: nothing would change")
        if self.arm is None and self.preference is not None:
            raise FieldError("preference", "needs an arm")
        return self

    def references(self) -> dict[str, Reference]:
        """Return the base, the harm vector and the ARM."""
        refs = {"base_model": base_model_reference(self.base_model)}
        if self.harm_vector is not None:
            refs["harm_vector"] = artifact_reference(self.harm_vector, "harm_vector", "task_vector")
        if self.arm is not None:
            refs["arm"] = artifact_reference(self.arm, "arm", "adapter")
        return refs

    def attributes_needed(self) -> dict[str, Collection[str]]:
        """Return the attributes that the preference weighs."""
        return {"spec.preference": list(self.preference or ())}
