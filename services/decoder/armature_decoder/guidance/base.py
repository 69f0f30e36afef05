"""What a stage is: one alignment method's part in serving a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from armature.contracts.generation import GenerationRequest
from armature.contracts.profiles import ProfileManifest

T = TypeVar("T")


@dataclass(frozen=True)
class StagePlan:
    """What a stage adds to one request, as data.

    ``sequence`` are the fields of :class:`armature.inference.batch.GuidedRequest` that it sets (they decide which
    rows the request gets and how their logits are combined); ``applied`` are the fields of
    :class:`armature.contracts.generation.Alignment` by which the answer says what was done.
    """

    sequence: Mapping[str, Any] = field(default_factory=dict)
    applied: Mapping[str, Any] = field(default_factory=dict)
    instruction: str | None = None
    """What the request's prompt is read below, once more."""


Stage = Callable[[ProfileManifest, GenerationRequest], StagePlan]
"""Plans its part from the profile's defaults and the request's overrides.

Raises:
    InvalidRequest: An override that the profile's parts can not honour.
"""


def either(own: T | None, default: T) -> T:
    """The request's own value if it gives one, else the profile's."""
    return default if own is None else own
