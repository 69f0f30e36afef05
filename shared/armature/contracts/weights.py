"""What a checkpoint's weights were before the import, and the share of them that a job selects.

Both are left out where they are unknown, so that older manifests keep their digests.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from armature.contracts.base import Contract


def is_absent(value: object) -> bool:
    """Whether a field is left out of manifests."""
    return value is None


class WeightsOrigin(Contract):
    """The form in which imported weights were stored, where they were dequantised."""

    format: str = Field(description="gguf, or the method's name in config.json, such as fp8")
    quantisation: str = Field(description="the type that most weights had, such as Q4_1")
    bits_per_weight: float = Field(gt=0, le=64, description="stored bytes times 8 by the number of weights")


OriginOfWeights = Annotated[
    WeightsOrigin | None, Field(exclude_if=is_absent, description="null: the source held them as they are")
]
SelectedShare = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        exclude_if=is_absent,
        description="share of the decoder layers' weights that the job selected to edit or to adapt",
    ),
]
