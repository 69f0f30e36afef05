"""What a stage is: one alignment method's part in serving a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.generation import GenerationRequest
from armature.contracts.preferences import SafeSetMode
from armature.contracts.profiles import ProfileManifest
from armature.contracts.sda import SdaApplied
from armature.inference.request import Guide, Instruction, StreamCount

T = TypeVar("T")


@dataclass(frozen=True)
class Applied:
    """What was applied: the fields of an answer's :class:`~armature.contracts.answers.Alignment`."""

    preference: Mapping[str, float] | None = None
    guidance_weight: float = 0.0
    safe_set_delta: float | None = None
    safe_set_mode: SafeSetMode | None = None
    sda: SdaApplied | None = None


@dataclass(frozen=True)
class GuidancePlan:
    """What guides a request, as its stages decide from the profile and the request.

    Each stage adds its part. ``instruction_text`` is what the request's prompt is read below, once more, for the
    instructed stream; ``chat`` is how the profile has dialogues written.
    """

    guide: Guide | None = None
    instruction: Instruction | None = None
    instruction_text: str | None = None
    chat: ChatFormat = AS_SENT
    applied: Applied = field(default_factory=Applied)

    @property
    def stream_count(self) -> StreamCount:
        """The streams that a request under this plan runs."""
        return StreamCount.of(self.guide, self.instruction)


Stage = Callable[[ProfileManifest, GenerationRequest, GuidancePlan], GuidancePlan]
"""Adds its part to a plan, from the profile's defaults and the request's overrides.

Raises:
    InvalidRequest: An override that the profile's parts can not honour.
"""


def either(own: T | None, default: T) -> T:
    """Return the request's own value if it gives one, else the profile's."""
    return default if own is None else own
