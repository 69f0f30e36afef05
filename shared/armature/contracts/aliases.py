"""Aliases of a profile: their target, their moves, and the gate that a version must pass first."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from armature.contracts.base import Contract, FieldError, Name, UnixSeconds, View
from armature.contracts.specs.evaluation import METRICS, EvaluationRole

VersionNumber = Annotated[int, Field(ge=1)]


class CanarySplit(Contract):
    """A second version that serves a share of the requests; the same ``user`` always gets the same one."""

    version: VersionNumber
    weight: float = Field(gt=0, lt=1, description="share of requests, or of users if requests name a user")


class AliasMoveRequest(Contract):
    """The move of an alias to a version. ``if_version`` makes it a compare-and-set."""

    version: VersionNumber
    if_version: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the version the alias must point at now; 0: it must not exist"
    )
    canary: CanarySplit | None = Field(None, description="None ends an existing split")

    @model_validator(mode="after")
    def _versions_differ(self) -> AliasMoveRequest:
        if self.canary is not None and self.canary.version == self.version:
            raise FieldError("canary.version", "must be another version than the alias' own")
        return self


class AliasRollbackRequest(Contract):
    """The move of an alias back to its previous version, without a canary."""

    if_version: VersionNumber | None = Field(None, description="the version the alias must point at now")


class AliasView(View):
    """An alias and its target."""

    object: Literal["profile.alias"] = "profile.alias"
    profile: Name
    alias: Name
    version: int
    canary: CanarySplit | None = None
    updated_at: UnixSeconds


class AliasMoveView(View):
    """One entry of an alias' history; ``seq`` counts 1, 2, 3, ... within the alias."""

    object: Literal["profile.alias.move"] = "profile.alias.move"
    seq: int
    version: int
    canary: CanarySplit | None = None
    rollback: bool
    key_id: str
    reports: list[str] = Field(description="artifact ids of the evaluations that passed the gate")
    created_at: UnixSeconds


class GateRule(Contract):
    """A bound on one of the ``metrics`` of an evaluation report."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [bound], "properties": {bound: {"type": "number"}}} for bound in ("at_most", "at_least")
            ]
        }
    )

    metric: Annotated[str, Field(json_schema_extra={"enum": list(chain(*METRICS.values()))})]
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> GateRule:
        if self.at_most is None and self.at_least is None:
            raise ValueError("give at_most, at_least or both")
        return self

    def admits(self, value: float) -> bool:
        """Tell whether ``value`` is within the bounds."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


class AliasGate(Contract):
    """The conditions on a version's evaluations before the alias moves to it.

    ``datasets`` pins the data sets of the evaluations, by their role in ``evaluation.run``.
    """

    rules: list[GateRule] = Field(min_length=1, max_length=32)
    datasets: dict[EvaluationRole, str] = Field(default_factory=dict, description="data set ids by role")


class AliasGateView(AliasGate, View):
    """A gate as the API shows it."""

    object: Literal["profile.alias.gate"] = "profile.alias.gate"
    profile: Name
    alias: Name
