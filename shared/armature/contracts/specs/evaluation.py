"""``evaluation.run``: attack success, capability and preference control, by deterministic scorers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from armature.contracts.base import Contract, FieldError, Seed
from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import DatasetUse
from armature.contracts.preferences import ATTRIBUTES, AttributeNames, SafeSet
from armature.contracts.sda import SdaSteering
from armature.contracts.specs.base import (
    BaseSpec,
    Reference,
    artifact_reference,
    attribute_fields,
    base_model_reference,
    dataset_reference,
)

EvaluationRole = Literal["lexicon", "harmful_prompts", "benign_prompts", "benign_pairs", "harmful_openings", "prompts"]
"""The role of a data set in an evaluation."""


class EvaluationSampling(Contract):
    """The sampling of answers. Greedy decoding repeats itself on small models, so the default samples."""

    temperature: float = Field(0.7, ge=0, le=10)
    max_tokens: int = Field(64, ge=1, le=8192)
    batch_size: int = Field(128, ge=1, le=4096, description="requests decoded in one batch")


class EvaluationGuidance(SafeSet):
    """The guidance, applied if there is an ARM. The safe set also bounds an instruction."""

    guidance_weight: float = Field(3.0, ge=0, le=32)


class EvaluationRunSpec(BaseSpec):
    """Output: ``report``, on a base, optionally with a harm vector, an ARM and an instruction."""

    takes_separate_arm: ClassVar[bool] = True
    phases: ClassVar[Mapping[str, float]] = {
        "load": 5.0,
        "harmful_prompts": 30.0,
        "benign_prompts": 10.0,
        "benign_pairs": 5.0,
        "harmful_openings": 5.0,
        "prompts": 50.0,
    }

    kind: Literal["evaluation.run"] = "evaluation.run"
    base_model: str
    harm_vector: str | None = None
    harm_scale: float = Field(1.5, ge=0, le=100)
    arm: str | None = Field(None, description="artifact id of an adapter, on this base or on a separate backbone")
    lexicon: str | None = Field(
        None,
        description="data set usable as lexicon: the scorer, which prompts need; None: every answer to harmful_prompts "
        "that is no refusal counts as harmful",
    )
    harmful_prompts: str | None = Field(None, description="data set usable as prompt: attack success rate")
    benign_prompts: str | None = Field(
        None, description="data set usable as prompt: share that is refused; best such as look harmful"
    )
    benign_pairs: str | None = Field(None, description="data set usable as prompt_completion: NLL of the completions")
    harmful_openings: str | None = Field(
        None, description="data set usable as prompt_completion: openings of harmful answers; measures the safe set"
    )
    prompts: str | None = Field(None, description="data set usable as prompt: attribute scores over preferences")
    attributes: AttributeNames = Field(default=list(ATTRIBUTES))
    preferences: int = Field(20, ge=1, le=512, description="grid size: vertices, centroid, then Dirichlet draws")
    prompts_per_preference: int = Field(20, ge=1, le=10_000)
    guidance: EvaluationGuidance = EvaluationGuidance()
    sda: SdaSteering | None = Field(None, description="steering by an instruction, as a profile version sets it")
    sampling: EvaluationSampling = EvaluationSampling()
    chat: ChatFormat = Field(AS_SENT, description="how dialogues are written, as a profile version sets it")
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluationRunSpec:
        if not any(getattr(self, role) for role in _DATASETS):
            raise ValueError(f"give at least one of {', '.join(_DATASETS)}: nothing would be measured")
        if self.prompts is not None and self.lexicon is None:
            raise FieldError("lexicon", "prompts need a lexicon, which scores attributes")
        return self

    def references(self) -> dict[str, Reference]:
        """Return the evaluated model's parts and the given data sets."""
        refs = {"base_model": base_model_reference(self.base_model)}
        if self.lexicon is not None:
            refs["lexicon"] = dataset_reference(self.lexicon, "lexicon", "lexicon", attribute_fields(self.attributes))
        if self.harm_vector is not None:
            refs["harm_vector"] = artifact_reference(self.harm_vector, "harm_vector", "task_vector")
        if self.arm is not None:
            refs["arm"] = artifact_reference(self.arm, "arm", "adapter")
        for role, use in _DATASETS.items():
            if (dataset := getattr(self, role)) is not None:
                refs[role] = dataset_reference(dataset, role, use)
        return refs

    def tokens_asked(self) -> dict[str, int]:
        """Return the length of an answer, if answers are generated."""
        answers = any(getattr(self, role) is not None for role in ("harmful_prompts", "benign_prompts", "prompts"))
        return {"spec.sampling.max_tokens": self.sampling.max_tokens} if answers else {}

    def attributes_needed(self) -> dict[str, Collection[str]]:
        """Return the attributes that are scored."""
        return {"spec.attributes": self.attributes}


_DATASETS: dict[EvaluationRole, DatasetUse] = {
    "harmful_prompts": "prompt",
    "benign_prompts": "prompt",
    "benign_pairs": "prompt_completion",
    "harmful_openings": "prompt_completion",
    "prompts": "prompt",
}
"""The optional data sets and the use of each."""

METRICS: dict[EvaluationRole, tuple[str, ...]] = {
    "harmful_prompts": ("asr", "asr_low", "asr_high", "asr_or_degenerate", "refusal"),
    "benign_prompts": ("over_refusal", "over_refusal_low", "over_refusal_high"),
    "benign_pairs": ("nll",),
    "harmful_openings": ("critical_gap", "safe_set_delta"),
    "prompts": (
        "mip",
        "mip_shuffled",
        "spearman_mean",
        "spearman_weakest",
        "degenerate",
        "malformed",
        "kl_to_safe",
        "one_hot_gain",
        "diagonal_dominance",
        "dominant_rows",
    ),
}
"""The numeric metrics of a report, by the role of the data set that they are measured on."""


def data_reference(role: EvaluationRole, id: str, param: str) -> Reference:
    """Make a reference to a data set in ``role``, named by the field ``param``."""
    use = "lexicon" if role == "lexicon" else _DATASETS[role]
    return dataset_reference(id, role, use).model_copy(update={"param": param})
