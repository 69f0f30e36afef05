"""The stages of serving, in the order they are planned; the decoder's twin of the worker's table of recipes."""

from __future__ import annotations

from armature.contracts.generation import GenerationRequest
from armature.contracts.profiles import ProfileManifest
from armature_decoder.guidance.arm import plan_arm
from armature_decoder.guidance.base import Stage, StagePlan
from armature_decoder.guidance.sda import plan_sda

STAGES: dict[str, Stage] = {"sda": plan_sda, "arm": plan_arm}


def plan_stages(manifest: ProfileManifest, request: GenerationRequest) -> StagePlan:
    """All stages' plans for one request, merged."""
    plans = [stage(manifest, request) for stage in STAGES.values()]
    return StagePlan(
        sequence={name: value for plan in plans for name, value in plan.sequence.items()},
        applied={name: value for plan in plans for name, value in plan.applied.items()},
        instruction=next((plan.instruction for plan in plans if plan.instruction is not None), None),
    )
