"""``arm.export``: export an ARM at one fixed preference as a plain LoRA, for servers without ARMs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from armature.contracts.preferences import FixedPreference
from armature.contracts.specs.base import BaseSpec, Queue, Reference, artifact_reference

BaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9./][A-Za-z0-9._/-]{0,255}$")]


class ArmExportSpec(BaseSpec):
    """Output: ``lora``, which stock PEFT loads on the ARM's backbone without Armature."""

    queue: ClassVar[Queue] = "cpu"
    phases: ClassVar[Mapping[str, float]] = {"export": 95.0}

    kind: Literal["arm.export"] = "arm.export"
    arm: str
    preference: FixedPreference | None = Field(None, description="the preference of the LoRA; None: equal weights")
    base_name: BaseName | None = Field(
        None, description="the serving side's name of the ARM's backbone; None: its digest"
    )

    def references(self) -> dict[str, Reference]:
        """Return the ARM."""
        return {"arm": artifact_reference(self.arm, "arm", "adapter")}

    def attributes_needed(self) -> dict[str, Collection[str]]:
        """Return the attributes that the preference weighs."""
        return {"spec.preference": list(self.preference or ())}
