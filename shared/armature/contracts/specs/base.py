"""What every job spec has: a kind, and the inputs it names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactKind, ArtifactRef
from armature.contracts.base import Contract, Sha256
from armature.contracts.datasets import DatasetUse
from armature.contracts.preferences import AttributeName

Queue = Literal["gpu", "cpu"]


HarmfulData = Literal["refused", "taken", "marked"]
"""What a role of a job does with data that is marked harmful; ``marked``: whatever it is given is so from then on."""


class Reference(Contract):
    """An input that a spec names by id; the API resolves it within the tenant when the job is created."""

    resource: Literal["base_model", "artifact", "dataset", "file"]
    id: str
    param: str
    artifact_kind: ArtifactKind | None = None
    dataset_use: DatasetUse | None = None
    attributes: dict[str, AttributeName] = Field(default_factory=dict)
    """That the data set must have labels, or patterns, for, by the field that names them."""
    harmful: HarmfulData = "refused"


class FileInput(Contract):
    """A resolved data set or file: where its bytes are and what they hash to.

    ``attribute`` is what a data set's judgements are about that do not say it.
    """

    type: Literal["file"] = "file"
    id: str
    key: str
    sha256: Sha256
    size: int
    filename: str
    attribute: AttributeName | None = None


class ArtifactInput(Contract):
    """A resolved artifact (a base model resolves to its checkpoint)."""

    type: Literal["artifact"] = "artifact"
    id: str
    ref: ArtifactRef


class BaseSpec(Contract):
    """Base of the specs. ``queue`` routes the job; ``references`` lists its inputs by role."""

    queue: ClassVar[Queue] = "gpu"
    takes_separate_arm: ClassVar[bool] = False
    """Whether its ARM may be on a model of its own and guide the base model; that one is the input ``arm_backbone``."""
    resumable: ClassVar[bool] = False
    """Whether the recipe saves checkpoints and goes on from them; only such a job can be paused while it runs."""
    phases: ClassVar[Mapping[str, float]] = {}
    """What the recipe reports as its phases, in order, each with about the share of the time that it takes."""

    @classmethod
    def all_phases(cls) -> dict[str, float]:
        """The phases with those that every job has around them."""
        return {"download": 2.0, **cls.phases, "publish": 3.0}

    @property
    def processes(self) -> int:
        """How many processes run the job side by side, each on a device of its own."""
        return 1

    def references(self) -> dict[str, Reference]:
        """The spec's inputs by role."""
        return {}

    def names_asked(self) -> dict[str, str]:
        """Names of base models that the job registers, by the field that gives them."""
        return {}

    def attributes_needed(self) -> dict[str, Collection[str]]:
        """Attributes that the spec's ARM must know, by the field that names them."""
        return {}

    def attributes_added(self) -> dict[str, AttributeName]:
        """Attributes that the spec's ARM must not know yet, by the field that names them."""
        return {}

    def ranks_asked(self) -> dict[str, int]:
        """Ranks of what is trained on the model, by the field that names them."""
        return {}

    def layers_asked(self) -> dict[str, Collection[int]]:
        """Numbers of layers that the model must have, by the field that names them."""
        return {}

    def tokens_asked(self) -> dict[str, int]:
        """How many tokens are to follow a prompt within the model's context, by the field that says so."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """The spec as manifests record it: without what only the operator's machine should know."""
        return self.model_dump(mode="json")


def base_model_reference(id: str, role: str = "base_model") -> Reference:
    """A reference to a base model; nearly every spec has one."""
    return Reference(resource="base_model", id=id, param=f"spec.{role}")


def artifact_reference(id: str, role: str, kind: ArtifactKind) -> Reference:
    """A reference to an artifact of one kind."""
    return Reference(resource="artifact", id=id, param=f"spec.{role}", artifact_kind=kind)


_HARMFUL_ROLES: dict[str, HarmfulData] = {
    "harmful_pairs": "marked",
    "harmful_prompts": "taken",
    "harmful_openings": "taken",
}
"""By name, which is the same in every spec; every other role refuses."""


def attribute_fields(names: Sequence[str]) -> dict[str, str]:
    """A spec's ``attributes``, each by its own field."""
    return {f"spec.attributes.{index}": name for index, name in enumerate(names)}


def dataset_reference(id: str, role: str, use: DatasetUse, attributes: Mapping[str, str] = {}) -> Reference:
    """A reference to a data set that serves a use and knows the attributes, which come by their fields."""
    return Reference(
        resource="dataset",
        id=id,
        param=f"spec.{role}",
        dataset_use=use,
        attributes=dict(attributes),
        harmful=_HARMFUL_ROLES.get(role, "refused"),
    )
