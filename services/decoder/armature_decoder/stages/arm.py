"""The ARM stage: one more row per request, combined with the safe row as the adapter was trained (GUI-Gen)."""

from __future__ import annotations

from armature.contracts.generation import GenerationRequest
from armature.contracts.preferences import preference_vector
from armature.contracts.profiles import ProfileManifest
from armature.errors import InvalidRequest
from armature.modeling.guided_batch import Guide
from armature_decoder.stages.base import StagePlan

_OVERRIDES = ("preference", "guidance_weight", "safe_set_delta")


def plan_arm(manifest: ProfileManifest, request: GenerationRequest) -> StagePlan:
    """The request's guide: its own values where it gives any, the profile's elsewhere.

    Raises:
        InvalidRequest: An unknown attribute, guidance beyond the profile's bounds, or of a profile without an ARM.
    """
    if manifest.arm is None:
        if given := [name for name in _OVERRIDES if getattr(request, name)]:
            raise InvalidRequest("this model has no ARM to guide it", param=given[0], code="no_arm")
        return StagePlan(applied={"preference": None, "guidance_weight": 0.0, "safe_set_delta": None})
    defaults = manifest.guidance
    weight = defaults.guidance_weight if request.guidance_weight is None else request.guidance_weight
    delta = defaults.safe_set_delta if request.safe_set_delta is None else request.safe_set_delta
    chosen = defaults.preference if request.preference is None else request.preference
    manifest.bounds.check(weight, delta)
    vector = preference_vector(chosen, manifest.attributes)
    guide = Guide(tuple(vector), weight, delta)
    return StagePlan(
        sequence={"guide": guide},
        applied={
            "preference": dict(zip(manifest.attributes, vector, strict=True)),
            "guidance_weight": weight,
            "safe_set_delta": delta if weight else None,
        },
    )
