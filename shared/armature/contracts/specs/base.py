"""The base of every job spec: its kind, its queue and the inputs that it refers to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactKind, ArtifactRef
from armature.contracts.base import Contract, Sha256
from armature.contracts.datasets import BadRows, DatasetUse
from armature.contracts.preferences import AttributeName

Queue = Literal["gpu", "cpu"]


HarmfulData = Literal["refused", "taken", "marked"]
"""Whether an input's role refuses or takes data flagged as harmful; ``marked`` also flags the data it gets."""


class Reference(Contract):
    """An input that a spec names by id; the API resolves it within the tenant at submission."""

    resource: Literal["base_model", "artifact", "dataset", "file"]
    id: str
    param: str
    artifact_kind: ArtifactKind | None = None
    dataset_use: DatasetUse | None = None
    attributes: dict[str, AttributeName] = Field(default_factory=dict)
    """Attributes for which the data set must have labels or patterns, by the field that names them."""
    harmful: HarmfulData = "refused"


class FileInput(Contract):
    """A resolved data set or file: the key and hash of its bytes.

    Of a data set, ``attribute`` is that of labels for which a row names none, and ``on_bad_rows`` what a bad row does.
    """

    type: Literal["file"] = "file"
    id: str
    key: str
    sha256: Sha256
    size: int
    filename: str
    attribute: AttributeName | None = None
    on_bad_rows: BadRows = "refuse"


class ArtifactInput(Contract):
    """A resolved artifact (a base model resolves to its checkpoint)."""

    type: Literal["artifact"] = "artifact"
    id: str
    ref: ArtifactRef


class BaseSpec(Contract):
    """Base of the specs. ``queue`` routes the job; ``references`` lists its inputs by role."""

    queue: ClassVar[Queue] = "gpu"
    takes_separate_arm: ClassVar[bool] = False
    """Whether the ARM may have a separate backbone, which is then the input ``arm_backbone``."""
    resumable: ClassVar[bool] = False
    """Whether the recipe saves checkpoints and resumes from them; only such a job can be paused while running."""
    one_model_at_a_time: ClassVar[bool] = False
    """Whether the job's base models are loaded one after another; its memory is then what the largest one needs."""
    makes_datasets: ClassVar[bool] = False
    """Whether the job's outputs have files of rows that become data sets."""
    phases: ClassVar[Mapping[str, float]] = {}
    """The recipe's phases in order, each with its approximate share of the time."""

    @classmethod
    def all_phases(cls) -> dict[str, float]:
        """Return the recipe's phases between those that every job has."""
        return {"download": 2.0, **cls.phases, "publish": 3.0}

    @property
    def processes(self) -> int:
        """Number of processes that run the job, each on its own device."""
        return 1

    def references(self) -> dict[str, Reference]:
        """Return the spec's inputs by role."""
        return {}

    def names_asked(self) -> dict[str, str]:
        """Return the names of base models that the job registers, by the field that gives them."""
        return {}

    def attributes_needed(self) -> dict[str, Collection[str]]:
        """Return the attributes that the spec's ARM must have, by the field that names them."""
        return {}

    def attributes_added(self) -> dict[str, AttributeName]:
        """Return the attributes that the spec's ARM must not have yet, by the field that names them."""
        return {}

    def ranks_asked(self) -> dict[str, int]:
        """Return the ranks of the adapters trained on the model, by the field that names them."""
        return {}

    def layers_asked(self) -> dict[str, Collection[int]]:
        """Return the numbers of layers that the model must have, by the field that names them."""
        return {}

    def tokens_asked(self) -> dict[str, int]:
        """Return the number of tokens generated after a prompt, by the field that sets it."""
        return {}

    def price(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Bound what the job costs, by unit, given the number of rows of each data set; empty: unknown."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """Return the spec as manifests record it: without details of the operator's machine."""
        return self.model_dump(mode="json")


def describe_price(price: Mapping[str, int]) -> str:
    """Format what a job costs in words."""
    return ", ".join(f"{count:,} {unit.replace('_', ' ')}" for unit, count in price.items() if count)


def base_model_reference(id: str, role: str = "base_model") -> Reference:
    """Make a reference to a base model."""
    return Reference(resource="base_model", id=id, param=f"spec.{role}")


def artifact_reference(id: str, role: str, kind: ArtifactKind) -> Reference:
    """Make a reference to an artifact of one kind."""
    return Reference(resource="artifact", id=id, param=f"spec.{role}", artifact_kind=kind)


_HARMFUL_ROLES: dict[str, HarmfulData] = {
    "harmful_pairs": "marked",
    "safe_pairs": "taken",
    "harmful_prompts": "taken",
    "harmful_openings": "taken",
}
"""By the role's name, which is the same in every spec; every other role refuses harmful data."""


def attribute_fields(names: Sequence[str]) -> dict[str, str]:
    """Return a spec's ``attributes`` by the path of each item."""
    return {f"spec.attributes.{index}": name for index, name in enumerate(names)}


def dataset_reference(id: str, role: str, use: DatasetUse, attributes: Mapping[str, str] = {}) -> Reference:
    """Make a reference to a data set usable as ``use`` that covers ``attributes`` (by field)."""
    return Reference(
        resource="dataset",
        id=id,
        param=f"spec.{role}",
        dataset_use=use,
        attributes=dict(attributes),
        harmful=_HARMFUL_ROLES.get(role, "refused"),
    )
