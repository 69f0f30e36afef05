"""Metadata of preference pairs that a job wrote: what became of them, and how far judges agree."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import Contract


class JudgeAgreement(Contract):
    """How often a judge preferred the side written for the attribute, over the pairs it was asked about."""

    asked: int = Field(ge=0)
    agreed: int = Field(ge=0, description="preferred the side written for, by its min_margin or more")
    tied: int = Field(ge=0, description="neither side by min_margin")
    opposed: int = Field(ge=0)
    unparsed: int = Field(ge=0, description="gave no verdict that could be read")
    orders_agreed: float | None = Field(None, description="share with one verdict whichever answer came first")
    kappa: float | None = Field(None, description="Cohen's kappa with human labels, ties being a third verdict")
    kappa_pairs: int = Field(0, ge=0, description="human labels compared")


class AttributePairs(Contract):
    """What became of the pairs written for one attribute."""

    written: int = Field(ge=0)
    kept: int = Field(ge=0)
    dropped: dict[str, int] = Field(
        description="by reason: unfinished, short, repetitive, echo, length, same, repeat, judges"
    )
    characters_for: float | None = Field(description="mean length of the side written for, over kept pairs")
    characters_against: float | None
    longer_for: float | None = Field(description="share of kept pairs whose side written for is the longer one")
    judges: list[JudgeAgreement] = Field(description="in the order of the spec")
    kappa: float | None = Field(None, description="Cohen's kappa of the labels with human labels of the same answers")
    kappa_pairs: int = Field(0, ge=0, description="human labels compared")


class PairsMetadata(Contract):
    """Preference pairs written by contrast, and how far the judges agree with the labels."""

    type: Literal["pairs"] = "pairs"
    rows: int = Field(ge=1)
    held_out_rows: int = Field(ge=0)
    prompts: int = Field(ge=1, description="prompts answered")
    hard_pairs: int = Field(ge=0)
    labels: dict[str, int] = Field(description="labels by attribute, those of other attributes' pairs included")
    independent: bool = Field(description="there is a judge, and no judge is a model that wrote answers")
    attributes: dict[str, AttributePairs]
