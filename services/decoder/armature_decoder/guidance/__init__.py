"""How a request is guided: the stages of serving, the decoder's twin of the worker's recipes."""

from __future__ import annotations

from armature.contracts.chat import AS_SENT
from armature.contracts.generation import GenerationRequest
from armature.contracts.profiles import ProfileManifest
from armature_decoder.guidance.arm import plan_arm
from armature_decoder.guidance.base import GuidancePlan, Stage
from armature_decoder.guidance.sda import plan_sda

STAGES: dict[str, Stage] = {"sda": plan_sda, "arm": plan_arm}


def plan_guidance(manifest: ProfileManifest, request: GenerationRequest) -> GuidancePlan:
    """Let every stage add its part to one request's plan; raises what a stage raises."""
    plan = GuidancePlan(chat=manifest.chat or AS_SENT)
    for stage in STAGES.values():
        plan = stage(manifest, request, plan)
    return plan
