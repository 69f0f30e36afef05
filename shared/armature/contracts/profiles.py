"""Alignment profiles: immutable versions of (base, harm vector, ARM, guidance), found by aliases."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactRef, Backbone, LossForm
from armature.contracts.base import Contract, Name, Sha256, UnixSeconds, View, digest
from armature.contracts.chat import ChatFormat
from armature.contracts.preferences import AttributeName, Guidance, GuidanceBounds
from armature.contracts.sda import Sda

LIVE_ALIAS = "live"
"""The default alias: ``model="care"`` means ``care@live``."""

MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}(@[a-z0-9][a-z0-9._-]{0,63})?$"


ARTIFACT_PARTS = ("base", "harm_vector", "arm", "arm_backbone")
"""The fields of a manifest that name an artifact."""


class ProfileCreateRequest(Contract):
    """The creation of an empty profile."""

    name: Name
    description: str = Field("", max_length=1024)


class Stages(Contract):
    """What steers a version's answers without anything to load; None: the version has no such stage.

    Requests, manifests and views have these fields, and so has an evaluation's spec, without bounds for requests.
    """

    sda: Sda | None = Field(None, description="steering by an instruction, without training")

    def stages(self) -> dict[str, Any]:
        """Return the stages by field."""
        return {name: getattr(self, name) for name in Stages.model_fields}


class ProfileVersionCreateRequest(Stages):
    """The creation of a version: a combination of parts, which are checked against each other by digest."""

    base_model: str
    harm_vector: str | None = Field(None, description="artifact id of a task vector")
    harm_scale: float = Field(1.5, ge=0, le=100)
    arm: str | None = Field(None, description="artifact id of an adapter")
    guidance: Guidance = Guidance()
    bounds: GuidanceBounds = GuidanceBounds()
    chat: ChatFormat | None = Field(None, description="how dialogues are written with the model's chat template")


class ProfileManifest(Stages):
    """A profile version as the decoder gets it: digests only, nothing to look up.

    Two versions with the same content have the same digest and share a bundle.
    """

    schema_version: Literal[1] = 1
    base: ArtifactRef
    backbone: Backbone
    harm_vector: ArtifactRef | None
    harm_scale: float = Field(ge=0)
    arm: ArtifactRef | None
    arm_backbone: ArtifactRef | None = Field(None, description="the ARM's separate model, if it is not on the base")
    attributes: list[AttributeName]
    loss_form: LossForm | None
    guidance: Guidance
    bounds: GuidanceBounds = GuidanceBounds()
    chat: ChatFormat | None = None

    @property
    def artifacts(self) -> dict[str, ArtifactRef]:
        """The artifacts that it has, by :data:`ARTIFACT_PARTS`."""
        refs = {part: getattr(self, part) for part in ARTIFACT_PARTS}
        return {part: ref for part, ref in refs.items() if ref is not None}

    def digest(self) -> str:
        """Compute the identity of the version: the SHA-256 over the canonical JSON."""
        return digest(self.model_dump(mode="json", exclude=self._absent_parts()))

    def bundle_digest(self) -> str:
        """Compute the identity of the bundle to load: as :meth:`digest`, without what only requests read."""
        requests = {"guidance", "bounds", "chat", *Stages.model_fields}
        return digest(self.model_dump(mode="json", exclude=self._absent_parts() | requests))

    def _absent_parts(self) -> set[str]:
        """Return the optional parts to leave out of digests: versions older than these fields keep theirs."""
        return {part for part in ("arm_backbone", "chat", *Stages.model_fields) if getattr(self, part) is None}


class ProfileVersionView(Stages, View):
    """A profile version as the API shows it."""

    object: Literal["profile.version"] = "profile.version"
    profile: Name
    version: int
    digest: Sha256
    created_at: UnixSeconds
    base_model: str
    harm_vector: str | None
    harm_scale: float
    arm: str | None
    guidance: Guidance
    bounds: GuidanceBounds = GuidanceBounds()
    chat: ChatFormat | None = None


class ProfileView(View):
    """A profile as the API shows it."""

    id: str
    object: Literal["profile"] = "profile"
    name: Name
    description: str
    created_at: UnixSeconds
    latest_version: int = Field(description="0: no version yet")
    aliases: dict[str, int]
