"""What a stage is: one alignment method's part in serving a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from armature.contracts.generation import GenerationRequest
from armature.contracts.profiles import ProfileManifest


@dataclass(frozen=True)
class StagePlan:
    """What a stage adds to one request, as data.

    ``sequence`` are the fields of :class:`armature.modeling.guided_batch.GuidedRequest` that it sets (they decide which
    rows the request gets and how their logits are combined); ``applied`` are the fields of
    :class:`armature.contracts.generation.Alignment` by which the answer says what was done.
    """

    sequence: Mapping[str, Any] = field(default_factory=dict)
    applied: Mapping[str, Any] = field(default_factory=dict)


Stage = Callable[[ProfileManifest, GenerationRequest], StagePlan]
"""Plans its part from the profile's defaults and the request's overrides.

Raises:
    InvalidRequest: An override that the profile's parts can not honour.
"""
