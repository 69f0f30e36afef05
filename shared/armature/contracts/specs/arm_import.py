"""``arm.import``: import an adapter trained by PARM's own code as an ARM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from armature.contracts.artifacts import LossForm
from armature.contracts.preferences import AttributeNames
from armature.contracts.specs.base import BaseSpec, Queue, Reference, artifact_reference, base_model_reference


class ArmImportSpec(BaseSpec):
    """Output: ``arm``. The two files are uploaded through ``/v1/files`` with purpose ``model``."""

    queue: ClassVar[Queue] = "cpu"
    phases: ClassVar[Mapping[str, float]] = {"check": 60.0, "probe": 35.0}

    kind: Literal["arm.import"] = "arm.import"
    base_model: str = Field(description="id of the base model that the adapter was trained on")
    harm_vector: str | None = Field(None, description="artifact id; None: the adapter was trained on the plain base")
    harm_scale: float = Field(1.5, ge=0, le=100)
    adapter_config: str = Field(description="id of the file adapter_config.json")
    adapter_weights: str = Field(description="id of the file adapter_model.safetensors")
    attributes: AttributeNames = Field(
        description="names of the objectives in training order; the file has their number only"
    )
    loss_form: LossForm = Field("sum", description="PARM trains without a reference")
    beta: float = Field(0.01, gt=0, le=1000, description="beta of the training, recorded with the ARM")

    def references(self) -> dict[str, Reference]:
        """Return the backbone's parts and the two files."""
        refs = {"base_model": base_model_reference(self.base_model)}
        for role in ("adapter_config", "adapter_weights"):
            refs[role] = Reference(resource="file", id=getattr(self, role), param=f"spec.{role}")
        if self.harm_vector is not None:
            refs["harm_vector"] = artifact_reference(self.harm_vector, "harm_vector", "task_vector")
        return refs
