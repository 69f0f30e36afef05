"""The config of an adapter, as PEFT stores it, and the table of kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from armature.algorithms.conditioned_lora import ConditionedShape
from armature.algorithms.modulated_lora import ModulatedShape, ScaledShape
from armature.algorithms.pblora import PBLoRAShape
from armature.contracts.artifacts import AdapterKind

PEFT_TYPE = "PBLORA"
KINDS: dict[AdapterKind, type[ConditionedShape]] = {
    "pblora": PBLoRAShape,
    "modulated": ModulatedShape,
    "scaled": ScaledShape,
}
_FIRST_KIND: AdapterKind = "pblora"


@dataclass
class PBLoRAConfig(PeftConfig):
    """PEFT's ``adapter_config.json``. Attributes are stored by name, in the order of the preference p."""

    attributes: list[str] = field(default_factory=list)
    kind: AdapterKind = _FIRST_KIND
    rank_shared: int = 4
    rank_conditioned: int = 4
    lora_alpha: float = 8.0
    dropout: float = 0.0
    loss_form: str = "reference"
    target_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if not self.attributes or len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes must be distinct names, at least one")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        if self.rank_shared < 0 or self.rank_conditioned < 1:
            raise ValueError("rank_shared must be >= 0 and rank_conditioned >= 1")

    @property
    def shape(self) -> ConditionedShape:
        """The shape, as the algorithm takes it."""
        return KINDS[self.kind](self.rank_shared, self.rank_conditioned, len(self.attributes), self.lora_alpha)

    def to_dict(self) -> dict[str, Any]:
        """Convert as PEFT does, with sorted targets: PEFT turns long lists into sets, whose order varies.

        The first kind goes without its name: files from before there were others keep their digests.
        """
        values: dict[str, Any] = super().to_dict()
        if self.kind == _FIRST_KIND:
            del values["kind"]
        if isinstance(self.target_modules, set | list):
            values["target_modules"] = sorted(self.target_modules)
        return values
