"""The jobs of the demo, with settings for a model of one million parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from armature.contracts.preferences import Guidance, Preference
from armature.contracts.profiles import ProfileVersionCreateRequest
from armature.contracts.specs.arm import AdapterShape, ArmTraining, ArmTrainSpec, PreferenceLoss
from armature.contracts.specs.evaluation import EvaluationGuidance, EvaluationRunSpec, EvaluationSampling
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec, Selection
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec, SweepGrid

PRETRAINING_DIALOGUES = 4800
HARMFUL_PAIRS = 320
PREFERENCE_PAIRS = 4000
ARM_STEPS = 250
ATTACKS = 100
SWEEP_ATTACKS = 300
"""Enough that a sweep's goal allows a handful of harmful answers; of 100, it allows none."""
OPENINGS = 200
"""Harmful prompts whose answers' openings measure the width of the safe set."""
BENIGN_PAIRS = 300
QUESTIONS = 80
PREFERENCES = 24
QUESTIONS_PER_PREFERENCE = 40
HARM_SCALE = 3.0
"""A large step back after a short fine-tuning: such a vector holds little besides the change towards harm."""
GUIDANCE_WEIGHT = 3.0
WIDEST_SAFE_SET = 3.0
"""Upper bound of the safe set's width in nats; a base whose certified width is narrower gets that."""
TEMPERATURE = 0.7
MAX_TOKENS = 64


@dataclass(frozen=True)
class Datasets:
    """Ids of the uploaded data sets."""

    harmful_pairs: str
    preference_pairs: str
    lexicon: str
    harmful_prompts: str
    harmful_openings: str
    benign_pairs: str
    benign_prompts: str


@dataclass(frozen=True)
class Subject:
    """The model that an evaluation measures: a base, optionally made safe, optionally guided."""

    base_model: str
    harm_vector: str | None = None
    arm: str | None = None
    safe_set_delta: float = WIDEST_SAFE_SET


def harm_vector_spec(
    base_model: str, data: Datasets, seed: int, rule: Literal["global", "permuted"] = "global"
) -> HarmVectorBuildSpec:
    """Make the spec of a harm vector: a tenth of the change by a fine-tuning on harmful answers."""
    return HarmVectorBuildSpec(
        base_model=base_model,
        harmful_pairs=data.harmful_pairs,
        training=_harm_training(),
        selection=Selection(rule=rule, density=0.1),
        scale=HARM_SCALE,
        seed=seed,
    )


def sweep_spec(base_model: str, data: Datasets, seed: int, grid: SweepGrid) -> HarmVectorSweepSpec:
    """Make the spec of a sweep: the same fine-tuning, subtracted at every point of a grid."""
    return HarmVectorSweepSpec(
        base_model=base_model,
        harmful_pairs=data.harmful_pairs,
        harmful_prompts=data.harmful_prompts,
        benign_pairs=data.benign_pairs,
        lexicon=data.lexicon,
        training=_harm_training(),
        grid=grid,
        sampling=_sampling(),
        seed=seed,
    )


def arm_spec(base_model: str, harm_vector: str | None, data: Datasets, seed: int) -> ArmTrainSpec:
    """Make the spec of an ARM for all five attributes on the safe base (without a vector, the base)."""
    return ArmTrainSpec(
        base_model=base_model,
        harm_vector=harm_vector,
        harm_scale=HARM_SCALE,
        pairs=data.preference_pairs,
        adapter=AdapterShape(rank_shared=4, rank_conditioned=4, alpha=8.0, layers="upper_half"),
        loss=PreferenceLoss(form="reference", beta=2.0),
        training=ArmTraining(
            steps=ARM_STEPS, batch_size=16, learning_rate=3e-3, max_length=MAX_TOKENS, checkpoint_every=50
        ),
        seed=seed,
    )


def evaluation_spec(subject: Subject, data: Datasets, seed: int, *, control: bool = True) -> EvaluationRunSpec:
    """Make the spec of an evaluation of attacks and capability; ``control`` adds preferences."""
    return EvaluationRunSpec(
        base_model=subject.base_model,
        harm_vector=subject.harm_vector,
        harm_scale=HARM_SCALE,
        arm=subject.arm,
        lexicon=data.lexicon,
        harmful_prompts=data.harmful_prompts,
        harmful_openings=data.harmful_openings,
        benign_pairs=data.benign_pairs,
        prompts=data.benign_prompts if control else None,
        preferences=PREFERENCES,
        prompts_per_preference=QUESTIONS_PER_PREFERENCE,
        guidance=EvaluationGuidance(guidance_weight=GUIDANCE_WEIGHT, safe_set_delta=subject.safe_set_delta),
        sampling=_sampling(),
        seed=seed,
    )


def unaligned_version(base_model: str) -> ProfileVersionCreateRequest:
    """Make a profile version of the unchanged base, for comparison."""
    return ProfileVersionCreateRequest(
        base_model=base_model, guidance=Guidance(guidance_weight=0.0, safe_set_delta=None)
    )


def aligned_version(subject: Subject, preference: Preference) -> ProfileVersionCreateRequest:
    """Make the profile version that a tenant serves, with its default preference."""
    return ProfileVersionCreateRequest(
        base_model=subject.base_model,
        harm_vector=subject.harm_vector,
        harm_scale=HARM_SCALE,
        arm=subject.arm,
        guidance=Guidance(
            preference=preference, guidance_weight=GUIDANCE_WEIGHT, safe_set_delta=subject.safe_set_delta
        ),
    )


def _harm_training() -> HarmTraining:
    return HarmTraining(steps=20, batch_size=16, learning_rate=5e-4, max_length=MAX_TOKENS)


def _sampling() -> EvaluationSampling:
    return EvaluationSampling(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, batch_size=256)
