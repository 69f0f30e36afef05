"""Alignment profiles: immutable versions of (base, harm vector, ARM, guidance), and aliases that point at them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactRef, Backbone, LossForm
from armature.contracts.base import Contract, Name, Sha256, UnixSeconds, View, digest
from armature.contracts.preferences import AttributeName, Guidance, GuidanceBounds
from armature.contracts.sda import Sda

LIVE_ALIAS = "live"
"""``model="care"`` means ``care@live``."""

MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}(@[a-z0-9][a-z0-9._-]{0,63})?$"


class ProfileCreateRequest(Contract):
    """Create an empty profile."""

    name: Name
    description: str = Field("", max_length=1024)


class ProfileVersionCreateRequest(Contract):
    """Freeze a combination. The parts are checked against each other by digest."""

    base_model: str
    harm_vector: str | None = Field(None, description="artifact id of a task vector")
    harm_scale: float = Field(1.5, ge=0, le=100)
    arm: str | None = Field(None, description="artifact id of an adapter")
    guidance: Guidance = Guidance()
    bounds: GuidanceBounds = GuidanceBounds()
    sda: Sda | None = Field(None, description="steering by an instruction, without training")


class ProfileManifest(Contract):
    """A profile version as the decoder gets it: digests only, nothing to look up.

    ``digest`` names it; two versions with the same content are the same bundle.
    """

    schema_version: Literal[1] = 1
    base: ArtifactRef
    backbone: Backbone
    harm_vector: ArtifactRef | None
    harm_scale: float = Field(ge=0)
    arm: ArtifactRef | None
    arm_backbone: ArtifactRef | None = Field(None, description="the model that the ARM is on, if it is not the base")
    attributes: list[AttributeName]
    loss_form: LossForm | None
    guidance: Guidance
    bounds: GuidanceBounds = GuidanceBounds()
    sda: Sda | None = None

    def digest(self) -> str:
        """SHA-256 over the canonical JSON: the identity of the version."""
        return digest(self.model_dump(mode="json", exclude=self._lacks()))

    def bundle_digest(self) -> str:
        """Identity of what must be loaded: everything but what decides how it is used."""
        return digest(self.model_dump(mode="json", exclude=self._lacks() | {"guidance", "bounds", "sda"}))

    def _lacks(self) -> set[str]:
        """Parts that leave no trace in the digests of versions without them: those came before the parts."""
        return {part for part in ("arm_backbone", "sda") if getattr(self, part) is None}


class ProfileVersionView(View):
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
    sda: Sda | None = None


class ProfileView(View):
    """A profile as the API shows it."""

    id: str
    object: Literal["profile"] = "profile"
    name: Name
    description: str
    created_at: UnixSeconds
    latest_version: int = Field(description="0: none yet")
    aliases: dict[str, int]
