"""Attributes by name, preferences on the simplex, and the settings of guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from armature.contracts.base import Contract, FieldError
from armature.errors import InvalidRequest, ZeroPreference

ATTRIBUTES = ("empathy", "sensitivity", "non_judgmental", "truthfulness", "helpfulness")
"""The paper's five attributes. An adapter stores its own list by name, so others are possible."""

AttributeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("attributes must be distinct")
    return names


AttributeNames = Annotated[
    list[AttributeName],
    Field(min_length=1, max_length=64, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]
"""The attributes of a job, each named once."""

SafeSetMode = Literal["soft", "strict"]
"""soft: sample the guided distribution inside the safe set. strict: the ARM's best token inside it."""

Preference = dict[AttributeName, Annotated[float, Field(ge=0)]]
"""Weights by attribute name; attributes left out weigh 0. Normalised to sum 1, so only ratios matter."""


def _not_all_zero(preference: dict[str, float]) -> dict[str, float]:
    if not any(preference.values()):
        raise PydanticCustomError("zero_preference", "at least one weight must be positive")
    return preference


FixedPreference = Annotated[Preference, AfterValidator(_not_all_zero)]
"""A preference that a job merges into weights."""


def preference_vector(preference: Mapping[str, float] | None, attributes: Sequence[str]) -> list[float]:
    """Return the weights in the order of ``attributes``, summing to 1; None: equal weights.

    Raises:
        InvalidRequest: An unknown attribute, a negative or non-finite weight, or weights that sum to 0. The error's
            ``param`` names the attribute.
    """
    if preference is None:
        return [1 / len(attributes)] * len(attributes)
    for name, weight in preference.items():
        if name not in attributes:
            known = ", ".join(attributes)
            raise InvalidRequest(
                f"unknown attribute {name!r}; this model knows {known}",
                param=f"preference.{name}",
                code="unknown_attribute",
            )
        if not math.isfinite(weight) or weight < 0:
            raise InvalidRequest(f"the weight of {name} must be a finite number >= 0", param=f"preference.{name}")
    largest = max(preference.values(), default=0.0)
    if largest == 0:
        raise ZeroPreference("at least one weight must be positive", param="preference")
    _, exponent = math.frexp(largest)  # a power of two rounds nothing, and keeps the sum of huge weights finite
    scaled = {name: math.ldexp(weight, -exponent) for name, weight in preference.items()}
    total = math.fsum(scaled.values())
    return [scaled.get(name, 0.0) / total for name in attributes]


class SafeSet(Contract):
    """The tokens that can be sampled: those with ``log pi_safe >= max - delta``."""

    safe_set_delta: float | None = Field(3.0, ge=0, le=100, description="in nats; None: no safe set")
    safe_set_mode: SafeSetMode = "soft"

    @model_validator(mode="after")
    def _strict_needs_a_set(self) -> SafeSet:
        if self.safe_set_mode == "strict" and self.safe_set_delta is None:
            raise FieldError("safe_set_mode", "strict needs a safe_set_delta")
        return self


class Guidance(SafeSet):
    """The settings of guided decoding: ``log pi_safe + w * q`` inside the safe set.

    ``q`` is ``log pi_arm`` (plain form) or ``log pi_arm - log pi_safe`` (reference form), as the adapter was trained.
    """

    preference: Preference | None = Field(None, description="None: equal weights")
    guidance_weight: float = Field(1.0, ge=0, le=32, description="w = 1/beta; 0 is the safe base exactly")


class GuidanceBounds(Contract):
    """A profile's bounds on a request's guidance. None: no bound but the field's own."""

    max_guidance_weight: float | None = Field(None, ge=0, le=32)
    max_safe_set_delta: float | None = Field(
        None, ge=0, le=100, description="a bound also forbids turning the safe set off"
    )

    def check(self, guidance_weight: float, safe_set_delta: float | None, prefix: str = "") -> None:
        """Refuse guidance beyond the bounds.

        Raises:
            InvalidRequest: A value is beyond its bound; ``param`` is its field, behind ``prefix``.
        """
        if self.max_guidance_weight is not None and guidance_weight > self.max_guidance_weight:
            raise _beyond(f"{prefix}guidance_weight", self.max_guidance_weight)
        delta = math.inf if safe_set_delta is None else safe_set_delta
        if self.max_safe_set_delta is not None and delta > self.max_safe_set_delta:
            raise _beyond(f"{prefix}safe_set_delta", self.max_safe_set_delta)


def _beyond(param: str, bound: float) -> InvalidRequest:
    return InvalidRequest(f"this profile allows {bound:g} at most", param=param, code="out_of_bounds")
