"""The SDA stage: one more stream per request, below an instruction, whose effect is amplified."""

from __future__ import annotations

from dataclasses import replace

from armature.algorithms.instruction_steering import amplification
from armature.contracts.generation import GenerationRequest
from armature.contracts.profiles import ProfileManifest
from armature.contracts.sda import Sda, SdaApplied, SdaRequest
from armature.errors import InvalidRequest
from armature.inference.request import Instruction
from armature_decoder.guidance.base import GuidancePlan, either


def plan_sda(manifest: ProfileManifest, request: GenerationRequest, plan: GuidancePlan) -> GuidancePlan:
    """Add the request's instruction: its own values where it gives any, the profile's elsewhere.

    Raises:
        InvalidRequest: An instruction beyond the profile's bounds, or of a profile without the stage.
    """
    if manifest.sda is None:
        if request.sda is not None:
            raise InvalidRequest("this model has no instruction to steer it", param="sda", code="no_sda")
        return plan
    own = request.sda or SdaRequest()
    _check_bounds(manifest.sda, own)
    strength = _lessen(either(own.strength, manifest.sda.strength), own.score)
    if strength == 0:
        return plan
    text = either(own.instruction, manifest.sda.instruction)
    delta = either(request.safe_set_delta, manifest.guidance.safe_set_delta)
    manifest.bounds.check(0.0, delta)
    adaptive = manifest.sda.adaptive_temperature
    instruction = Instruction.of(strength, adaptive, delta)
    applied = SdaApplied(instruction=text, strength=strength, adaptive_temperature=adaptive, safe_set_delta=delta)
    return replace(plan, instruction=instruction, instruction_text=text, applied=replace(plan.applied, sda=applied))


def _check_bounds(stage: Sda, own: SdaRequest) -> None:
    bounds = stage.bounds
    if own.instruction is not None and not bounds.own_instruction:
        raise InvalidRequest("this profile's instruction is fixed", param="sda.instruction", code="out_of_bounds")
    if own.strength is not None and bounds.max_strength is not None and own.strength > bounds.max_strength:
        message = f"this profile allows {bounds.max_strength:g} at most"
        raise InvalidRequest(message, param="sda.strength", code="out_of_bounds")


def _lessen(strength: float, score: float | None) -> float:
    """Return ``1 + kappa a`` for ``1 + kappa``: an answer that is good already leaves nothing to amplify."""
    if score is None or strength <= 1:
        return strength
    return 1 + (strength - 1) * amplification(score)
