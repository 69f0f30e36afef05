"""Judges of two answers to one prompt, by one attribute: what a spec says of them.

A judge gives a margin, positive where the first answer has more of the attribute. It never learns where an answer came
from. :mod:`armature_worker.judging` has the port and the judges themselves.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from armature.contracts.base import Contract, Name

EndpointName = Annotated[Name, Field(description="an endpoint of the worker's settings, which hold its key")]
RemoteModel = Annotated[str, Field(min_length=1, max_length=256, description="the model's name at the endpoint")]


class LikelihoodRatioJudge(Contract):
    """A base model: ``(log p(y | x, for) - log p(y | x, against)) / tokens``, first minus second.

    Source: DLMA (arXiv 2402.11907), there with the model's own answers; per token, since sums favour length.
    """

    type: Literal["likelihood_ratio"] = "likelihood_ratio"
    base_model: str = Field(description="id, alias or name of a base model that wrote none of the answers")
    min_margin: float = Field(0.02, ge=0, le=100, description="nats per token below which two answers are tied")


class EndpointJudge(Contract):
    """A model behind an OpenAI-compatible endpoint, asked twice: each answer comes first once."""

    type: Literal["endpoint"] = "endpoint"
    endpoint: EndpointName
    model: RemoteModel
    max_tokens: int = Field(256, ge=1, le=8192, description="tokens of a verdict with its reasons")

    @property
    def min_margin(self) -> float:
        """Half a vote: both orders must agree, since 0 is a tie and 1 is agreement."""
        return 0.5


Judge = Annotated[LikelihoodRatioJudge | EndpointJudge, Field(discriminator="type")]
