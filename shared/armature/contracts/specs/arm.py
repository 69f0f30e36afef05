"""``arm.train``: an autoregressive reward model for several attributes, conditioned on a preference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from armature.contracts.artifacts import AdapterKind, BackboneKind, LossForm
from armature.contracts.base import Contract, FieldError, Seed
from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.preferences import ATTRIBUTES, AttributeNames
from armature.contracts.specs.base import (
    BaseSpec,
    Reference,
    artifact_reference,
    attribute_fields,
    base_model_reference,
    dataset_reference,
)
from armature.contracts.specs.size_defaults import Schedule, fewest_steps, size_defaults

MIXTURE = "mixture"
ConflictMethod = Literal["sum", "pcgrad", "cagrad", "mgda", "aligned", "upgrad"]


class AdapterShape(Contract):
    """The adapter's kind, and its size: ranks r1 and r2, scale, and the layers that it is on."""

    kind: AdapterKind = Field(
        "pblora",
        description="how the preference acts: on a matrix core (pblora), or on each of r1 + r2 shared features, "
        "by scale and shift (modulated) or by scale alone (scaled)",
    )

    rank_shared: int = Field(4, ge=0, le=256, description="r1, blind to the preference in pblora")
    rank_conditioned: int = Field(4, ge=1, le=64, description="r2, conditioned on the preference")
    alpha: float = Field(8.0, gt=0, le=1024)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: Literal["all", "upper_half"] = "upper_half"
    targets: Literal["attention_and_mlp", "attention", "mlp"] = "attention_and_mlp"


class PreferenceLoss(Contract):
    """The pairwise logistic loss per attribute. Decoding must use the same form."""

    form: LossForm = "reference"
    beta: float = Field(2.0, gt=0, le=1000)
    mixture: float = Field(
        0.0, ge=0, le=1000, description="weight of one more loss, on the answer that the whole preference favours"
    )


class ConflictResolution(Contract):
    """The method that combines the attributes' conflicting gradients, and the parameters it applies to.

    ``shared`` applies it to the preference-agnostic part only and sums the conditioned part, where disagreeing labels
    are the signal that teaches preference control.
    """

    method: ConflictMethod = "sum"
    scope: Literal["shared", "all"] = "shared"
    record_every: int = Field(1, ge=1, le=1_000_000, description="steps between two rows of conflicts.csv")


class PreferenceSampling(Contract):
    """The distribution of training preferences: shares of vertices, centroid, and Dirichlet draws."""

    vertices: float = Field(0.4, ge=0, le=1)
    centroid: float = Field(0.1, ge=0, le=1)
    concentration: float = Field(0.5, gt=0, le=100, description="concentration of the symmetric Dirichlet")
    per: Literal["row", "step"] = Field("row", description="row: one draw per pair; step: one for all pairs of a step")

    @model_validator(mode="after")
    def _shares_fit(self) -> PreferenceSampling:
        if self.vertices + self.centroid > 1:
            raise FieldError("centroid", "vertices + centroid must not exceed 1")
        return self


class ArmTraining(Contract):
    """The optimization: AdamW with a cosine schedule."""

    steps: int | None = Field(None, ge=1, le=1_000_000, description="None: by the model's size")
    batch_size: int = Field(16, ge=1, le=4096, description="pairs per step")
    micro_batch_size: int | None = Field(
        None, ge=1, le=4096, description="pairs per forward pass: less memory, the same step; None: as many as fit"
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="None: by the model's size")
    weight_decay: float = Field(0.0, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0, le=100_000)
    max_length: int = Field(512, ge=8, le=131_072, description="tokens of prompt and response")
    max_grad_norm: float | None = Field(1.0, gt=0)
    checkpoint_every: int = Field(50, ge=1, description="steps between two checkpoints that a new attempt resumes from")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="dtype of the backbone; None: as stored. Adapter and log-probabilities are always float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, the same gradients")
    processes: int = Field(
        1, ge=1, le=64, description="ranks that share each batch, one per device; the resulting adapter is the same"
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp: each rank holds a shard of the backbone, for models larger than a device"
    )

    @field_validator("micro_batch_size")
    @classmethod
    def _fits_into_the_batch(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and size > info.data.get("batch_size", size):
            raise ValueError("must not exceed batch_size")
        return size

    @field_validator("warmup_steps")
    @classmethod
    def _leaves_steps(cls, steps: int, info: ValidationInfo) -> int:
        if steps and "steps" in info.data and steps >= (info.data["steps"] or fewest_steps("arm")):
            raise ValueError("must be smaller than steps")
        return steps

    def schedule(self, parameters: int) -> Schedule:
        """Return learning rate and steps for a model of so many parameters."""
        default = size_defaults("arm", parameters)
        return Schedule(self.learning_rate or default.learning_rate, self.steps or default.steps)

    @model_validator(mode="after")
    def _processes_fit(self) -> ArmTraining:
        if self.batch_size % self.processes:
            raise FieldError("batch_size", "must be a multiple of processes")
        if self.sharding != "none" and self.processes == 1:
            raise FieldError("sharding", "needs at least two processes")
        return self


class Validation(Contract):
    """The held-out pairs and how often they are evaluated; always at the end too."""

    share: float = Field(0.0, ge=0, le=0.5, description="share of the prompts, with all their pairs")
    every: int = Field(100, ge=1, le=1_000_000, description="steps between evaluations")


class ArmTrainSpec(BaseSpec):
    """Output: ``arm`` (adapter). It is trained on the safe base if a harm vector is given."""

    resumable: ClassVar[bool] = True
    phases: ClassVar[Mapping[str, float]] = {"load": 5.0, "train": 90.0}

    kind: Literal["arm.train"] = "arm.train"
    base_model: str
    harm_vector: str | None = Field(None, description="artifact id of a task vector; None trains on the plain base")
    harm_scale: float = Field(1.5, ge=0, le=100)
    backbone: BackboneKind | None = Field(
        None, description="the model that the ARM is trained on; None: safe if there is a harm vector, else base"
    )
    backbone_model: str | None = Field(
        None, validate_default=True, description="base model id of a separate backbone with the same tokenizer"
    )
    pairs: Annotated[str, Field(description="data set usable as preference")]
    validation_pairs: str | None = Field(None, description="data set usable as preference, to evaluate the ARM on")
    attributes: AttributeNames = Field(default=list(ATTRIBUTES))
    adapter: AdapterShape = AdapterShape()
    loss: PreferenceLoss = PreferenceLoss()
    conflict: ConflictResolution = ConflictResolution()
    preferences: PreferenceSampling = PreferenceSampling()
    training: ArmTraining = ArmTraining()
    validation: Validation = Validation()
    chat: ChatFormat = Field(AS_SENT, description="how dialogues are written, as a profile version sets it")
    seed: Seed = 0

    @property
    def backbone_kind(self) -> BackboneKind:
        """The kind of model that the ARM is trained on."""
        return self.backbone or ("base" if self.harm_vector is None else "safe")

    @field_validator("backbone")
    @classmethod
    def _goes_with_the_harm_vector(cls, kind: BackboneKind | None, info: ValidationInfo) -> BackboneKind | None:
        if kind is not None and (kind == "safe") != (info.data.get("harm_vector") is not None):
            raise ValueError("must be safe if and only if a harm vector is given")
        return kind

    @field_validator("backbone_model")
    @classmethod
    def _goes_with_a_separate_backbone(cls, model: str | None, info: ValidationInfo) -> str | None:
        separate = info.data.get("backbone") == "separate"
        if separate and model is None:
            raise PydanticCustomError("missing", "a separate backbone needs a backbone_model")
        if model is not None and not separate:
            raise ValueError("needs backbone: separate")
        return model

    @field_validator("validation")
    @classmethod
    def _has_one_source(cls, validation: Validation, info: ValidationInfo) -> Validation:
        if validation.share and info.data.get("validation_pairs") is not None:
            raise ValueError("share and validation_pairs exclude each other")
        return validation

    @model_validator(mode="after")
    def _objectives_differ(self) -> ArmTrainSpec:
        if len(set(self.objectives)) != len(self.objectives):
            raise FieldError("attributes", f"an attribute named {MIXTURE} excludes loss.mixture")
        return self

    @property
    def objectives(self) -> list[str]:
        """The losses whose gradients a step combines: attributes and, if it has a weight, the mixture."""
        return [*self.attributes, *([MIXTURE] if self.loss.mixture else [])]

    @property
    def processes(self) -> int:
        """``training.processes``."""
        return self.training.processes

    def ranks_asked(self) -> dict[str, int]:
        """Return the ranks of both parts of the adapter."""
        ranks = {"rank_shared": self.adapter.rank_shared, "rank_conditioned": self.adapter.rank_conditioned}
        return {f"spec.adapter.{name}": rank for name, rank in ranks.items()}

    def references(self) -> dict[str, Reference]:
        """Return the backbone's parts and the labelled pairs."""
        attributes = attribute_fields(self.attributes)
        refs = {
            "base_model": base_model_reference(self.base_model),
            "pairs": dataset_reference(self.pairs, "pairs", "preference", attributes),
        }
        if self.validation_pairs is not None:
            refs["validation_pairs"] = dataset_reference(
                self.validation_pairs, "validation_pairs", "preference", attributes
            )
        if self.backbone_model is not None:
            refs["backbone_model"] = base_model_reference(self.backbone_model, "backbone_model")
        if self.harm_vector is not None:
            refs["harm_vector"] = artifact_reference(self.harm_vector, "harm_vector", "task_vector")
        return refs
