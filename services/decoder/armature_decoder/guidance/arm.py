"""The ARM stage: one more stream, combined with the safe one as the adapter was trained (GUI-Gen)."""

from __future__ import annotations

from dataclasses import replace

from armature.contracts.generation import GenerationRequest
from armature.contracts.preferences import preference_vector
from armature.contracts.profiles import ProfileManifest
from armature.errors import InvalidRequest
from armature.inference.request import Guide
from armature_decoder.guidance.base import GuidancePlan, either

_OVERRIDES = ("preference", "guidance_weight", "safe_set_mode")
_RESTRICTION = "safe_set_delta"
"""An instruction keeps to it as well."""

_NEUTRAL = {"guidance_weight": 0.0}
"""Values that a model without an ARM honours; any other needs one, a delta of 0 (the likeliest token alone) too."""


def plan_arm(manifest: ProfileManifest, request: GenerationRequest, plan: GuidancePlan) -> GuidancePlan:
    """Add the request's guide: its own values where it gives any, the profile's elsewhere.

    Raises:
        InvalidRequest: An unknown attribute, guidance beyond the profile's bounds, or of a profile without an ARM.
    """
    if manifest.arm is None:
        refused = _OVERRIDES if manifest.sda else (*_OVERRIDES, _RESTRICTION)
        if given := [name for name in refused if getattr(request, name) not in (None, _NEUTRAL.get(name))]:
            raise InvalidRequest("this model has no ARM to guide it", param=given[0], code="no_arm")
        return plan
    defaults = manifest.guidance
    weight = either(request.guidance_weight, defaults.guidance_weight)
    delta = either(request.safe_set_delta, defaults.safe_set_delta)
    mode = either(request.safe_set_mode, defaults.safe_set_mode)
    manifest.bounds.check(weight, delta)
    if mode == "strict" and delta is None:
        raise InvalidRequest("strict needs a safe_set_delta, and this profile has none", param="safe_set_mode")
    vector = preference_vector(either(request.preference, defaults.preference), manifest.attributes)
    restricted = weight > 0 and delta is not None
    applied = replace(
        plan.applied,
        preference=dict(zip(manifest.attributes, vector, strict=True)),
        guidance_weight=weight,
        safe_set_delta=delta if restricted else None,
        safe_set_mode=mode if restricted else None,
    )
    return replace(plan, guide=Guide(tuple(vector), weight, delta, strict=mode == "strict"), applied=applied)
