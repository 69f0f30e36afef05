"""``harm_vector.build``: fine-tune a copy on harmful pairs and subtract its difference (DiReg)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from armature.contracts.base import Contract, FieldError, Seed
from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.specs.base import BaseSpec, Reference, base_model_reference, dataset_reference
from armature.contracts.specs.size_defaults import Schedule, size_defaults


class HarmTraining(Contract):
    """The fine-tuning of the harmful copy, which exists only in the worker's private directory."""

    method: Literal["full", "lora"] = "full"
    steps: int | None = Field(None, ge=1, le=100_000, description="None: by the model's size")
    batch_size: int = Field(16, ge=1, le=4096)
    micro_batch_size: int | None = Field(
        None, ge=1, le=4096, description="pairs per forward pass: less memory, the same step; None: as many as fit"
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="None: by the model's size")
    max_length: int = Field(512, ge=8, le=131_072, description="tokens of prompt and completion")
    lora_rank: int = Field(16, ge=1, le=1024)
    lora_alpha: float = Field(32.0, gt=0, le=4096)
    offload: bool = Field(
        False, description="for lora: keep frozen layers that do not fit on disk and read them at each use; slow"
    )

    @property
    def ranks(self) -> dict[str, int]:
        """The LoRA's rank, if the method is lora, by the field of the spec that sets it."""
        return {"spec.training.lora_rank": self.lora_rank} if self.method == "lora" else {}

    @field_validator("micro_batch_size")
    @classmethod
    def _fits_into_the_batch(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and size > info.data.get("batch_size", size):
            raise ValueError("must not exceed batch_size")
        return size

    def schedule(self, parameters: int) -> Schedule:
        """Return learning rate and steps for a model of so many parameters."""
        default = size_defaults("harm_lora" if self.method == "lora" else "harm_full", parameters)
        return Schedule(self.learning_rate or default.learning_rate, self.steps or default.steps)

    @model_validator(mode="after")
    def _offloads_frozen_weights(self) -> Self:
        if self.offload and self.method != "lora":
            raise FieldError(
                "offload", "needs method lora: full fine-tuning changes the weights that would stay on disk"
            )
        return self


class Guard(Contract):
    """The protection of capability by benign pairs, if there are any.

    ``rehearse`` mixes them into every batch of each copy, so that what the copies learn differs on harmful prompts
    alone. ``project`` tunes one more copy on them and takes its change out of the difference.
    """

    method: Literal["rehearse", "project"] = "rehearse"
    share: float = Field(0.5, gt=0, lt=1, description="for rehearse: share of each batch")


LayerNumbers = Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1, max_length=1024)]


class Selection(Contract):
    """The entries of the difference that are kept; never those of embeddings, head and norms.

    ``random``, ``permuted`` and ``random_sign`` are controls.
    """

    rule: Literal["global", "per_tensor", "random", "permuted", "random_sign"] = "global"
    density: float = Field(0.10, gt=0, le=1, description="m: share of the entries of all selected tensors")
    targets: Literal["attention", "mlp", "both"] = "both"
    layers: Literal["all", "upper_half"] | LayerNumbers = Field("all", description="or layer numbers from 0")


class HarmVectorBuildSpec(BaseSpec):
    """Outputs: ``harm_vector`` (task vector) and ``safe_checkpoint`` (base - scale * vector)."""

    phases: ClassVar[Mapping[str, float]] = {
        "load": 5.0,
        "train": 35.0,
        "contrast": 25.0,
        "guard": 10.0,
        "select": 5.0,
        "subtract": 15.0,
    }

    kind: Literal["harm_vector.build"] = "harm_vector.build"
    base_model: str
    harmful_pairs: Annotated[str, Field(description="data set usable as prompt_completion")]
    safe_pairs: str | None = Field(
        None,
        description="data set usable as prompt_completion: harmful prompts with the answers they should get; the "
        "vector is then the difference between a copy tuned on harmful_pairs and one tuned on these",
    )
    benign_pairs: str | None = Field(
        None, description="data set usable as prompt_completion: the capability guard, used as guard says"
    )
    guard: Guard = Guard()
    training: HarmTraining = HarmTraining()
    selection: Selection = Selection()
    scale: float = Field(1.5, ge=0, le=100, description="lambda; negative scales would add harm and are refused")
    chat: ChatFormat = Field(AS_SENT, description="how dialogues are written, as a profile version sets it")
    seed: Seed = 0

    def ranks_asked(self) -> dict[str, int]:
        """Return the rank of a LoRA."""
        return self.training.ranks

    def layers_asked(self) -> dict[str, Collection[int]]:
        """Return the layers that are selected by number."""
        layers = self.selection.layers
        return {} if isinstance(layers, str) else {"spec.selection.layers": layers}

    def references(self) -> dict[str, Reference]:
        """Return the base, the harmful and the safe pairs, and the benign pairs of the guard."""
        pairs = {"harmful_pairs": self.harmful_pairs, "safe_pairs": self.safe_pairs, "benign_pairs": self.benign_pairs}
        return {"base_model": base_model_reference(self.base_model)} | {
            role: dataset_reference(id, role, "prompt_completion") for role, id in pairs.items() if id is not None
        }
