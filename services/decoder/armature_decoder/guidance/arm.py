"""The ARM stage: one more row per request, combined with the safe row as the adapter was trained (GUI-Gen)."""

from __future__ import annotations

from armature.contracts.generation import GenerationRequest
from armature.contracts.preferences import preference_vector
from armature.contracts.profiles import ProfileManifest
from armature.errors import InvalidRequest
from armature.inference.request import Guide
from armature_decoder.guidance.base import StagePlan, either

_OVERRIDES = ("preference", "guidance_weight", "safe_set_mode")
_RESTRICTION = "safe_set_delta"
"""What an instruction keeps to as well."""

_NEUTRAL = {"guidance_weight": 0.0}
"""What is true of a model without an ARM; any other value wants one, a delta of 0 (the likeliest token alone) too."""


def plan_arm(manifest: ProfileManifest, request: GenerationRequest) -> StagePlan:
    """The request's guide: its own values where it gives any, the profile's elsewhere.

    Raises:
        InvalidRequest: An unknown attribute, guidance beyond the profile's bounds, or of a profile without an ARM.
    """
    if manifest.arm is None:
        refused = _OVERRIDES if manifest.sda else (*_OVERRIDES, _RESTRICTION)
        if given := [name for name in refused if getattr(request, name) not in (None, _NEUTRAL.get(name))]:
            raise InvalidRequest("this model has no ARM to guide it", param=given[0], code="no_arm")
        return StagePlan(applied={"preference": None, "guidance_weight": 0.0, "safe_set_delta": None})
    defaults = manifest.guidance
    weight = either(request.guidance_weight, defaults.guidance_weight)
    delta = either(request.safe_set_delta, defaults.safe_set_delta)
    mode = either(request.safe_set_mode, defaults.safe_set_mode)
    manifest.bounds.check(weight, delta)
    if mode == "strict" and delta is None:
        raise InvalidRequest("strict needs a safe_set_delta, and this profile has none", param="safe_set_mode")
    vector = preference_vector(either(request.preference, defaults.preference), manifest.attributes)
    restricted = weight > 0 and delta is not None
    return StagePlan(
        sequence={"guide": Guide(tuple(vector), weight, delta, strict=mode == "strict")},
        applied={
            "preference": dict(zip(manifest.attributes, vector, strict=True)),
            "guidance_weight": weight,
            "safe_set_delta": delta if restricted else None,
            "safe_set_mode": mode if restricted else None,
        },
    )
