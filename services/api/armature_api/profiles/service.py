"""Profiles and their immutable versions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.preferences import Guidance, GuidanceBounds, preference_vector
from armature.contracts.profiles import (
    ProfileCreateRequest,
    ProfileManifest,
    ProfileVersionCreateRequest,
    ProfileVersionView,
    ProfileView,
)
from armature.contracts.sda import Sda
from armature.db.models import Artifact, Profile, ProfileAlias, ProfileVersion
from armature.errors import InvalidRequest, NameTaken
from armature_api.artifacts.service import ref_of
from armature_api.base_models.service import find_base_model
from armature_api.inputs.compatibility import Combination, check_combination, own_backbone
from armature_api.inputs.references import find_artifact, find_checkpoint
from armature_api.kit.queries import insert, not_found, numbered_below

_MAX_VERSION = 2**31 - 1


def create_profile(session: Session, tenant_id: str, request: ProfileCreateRequest) -> Profile:
    """Insert a profile without versions.

    Raises:
        NameTaken: The tenant has a profile of that name.
    """
    profile = Profile(tenant_id=tenant_id, name=request.name, description=request.description)
    insert(session, profile, NameTaken("you have a profile of that name already", param="name"))
    return profile


def find_profile(session: Session, tenant_id: str, name: str, *, lock: bool = False) -> Profile:
    """Find the tenant's profile by name; ``lock`` holds its row until the commit.

    Raises:
        NotFound: The tenant has no such profile.
    """
    statement = select(Profile).where(Profile.tenant_id == tenant_id, Profile.name == name)
    statement = statement.with_for_update() if lock else statement
    profile = session.scalars(statement).one_or_none() if name.isprintable() else None
    if profile is None:
        raise not_found(Profile)
    return profile


def create_version(session: Session, tenant_id: str, name: str, request: ProfileVersionCreateRequest) -> ProfileVersion:
    """Freeze a combination under the profile's next number.

    Raises:
        NotFound, WrongKind: A part does not exist, or is of another kind.
        AdapterBaseMismatch, TokenizerMismatch: The parts were not made for each other.
        InvalidRequest: The guidance does not fit the ARM.
    """
    profile = find_profile(session, tenant_id, name, lock=True)
    model = find_base_model(session, tenant_id, request.base_model, param="base_model")
    request = request.model_copy(update={"base_model": model.id})  # an alias may move; a version keeps its model
    manifest = _manifest(_combine(session, tenant_id, request), request)
    latest = session.scalar(select(func.max(ProfileVersion.version)).where(ProfileVersion.profile_id == profile.id))
    version = ProfileVersion(
        profile_id=profile.id,
        version=(latest or 0) + 1,
        digest=manifest.digest(),
        request=request.model_dump(mode="json"),
        manifest=manifest.model_dump(mode="json"),
    )
    session.add(version)
    session.flush()
    return version


def find_version(session: Session, profile: Profile, number: int, *, param: str | None = None) -> ProfileVersion:
    """Find a version of the profile.

    Raises:
        NotFound: The profile has no such version.
    """
    version = session.get(ProfileVersion, (profile.id, number)) if 1 <= number <= _MAX_VERSION else None
    if version is None:
        raise not_found(ProfileVersion, param)
    return version


def versions_before(
    session: Session, profile: Profile, number: int | None, limit: int
) -> tuple[list[ProfileVersion], bool]:
    """List the profile's versions below ``number`` (None: all), newest first, and whether more follow."""
    statement = select(ProfileVersion).where(ProfileVersion.profile_id == profile.id)
    return numbered_below(session, statement, ProfileVersion.version, number, limit)


def profile_views(session: Session, profiles: list[Profile]) -> list[ProfileView]:
    """Build the profiles' views, each with its aliases."""
    ids = {profile.id for profile in profiles}
    aliases: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in session.scalars(select(ProfileAlias).where(ProfileAlias.profile_id.in_(ids))):
        aliases[row.profile_id][row.alias] = row.version
    newest = select(ProfileVersion.profile_id, func.max(ProfileVersion.version)).group_by(ProfileVersion.profile_id)
    latest = dict(session.execute(newest.where(ProfileVersion.profile_id.in_(ids))).all())
    return [
        ProfileView(
            id=profile.id,
            name=profile.name,
            description=profile.description,
            created_at=int(profile.created_at),
            latest_version=latest.get(profile.id, 0),
            aliases=aliases[profile.id],
        )
        for profile in profiles
    ]


def version_view(profile: str, version: ProfileVersion) -> ProfileVersionView:
    """Build the version's view."""
    return ProfileVersionView.model_validate(
        {
            "profile": profile,
            "version": version.version,
            "digest": version.digest,
            "created_at": int(version.created_at),
            **version.request,
        }
    )


def _combine(session: Session, tenant_id: str, request: ProfileVersionCreateRequest) -> Combination:
    def optional(id: str | None, role: str, kind: str) -> Artifact | None:
        return None if id is None else find_artifact(session, tenant_id, id, kind, param=role)

    combination = Combination(
        base=find_checkpoint(session, tenant_id, request.base_model, param="base_model"),
        harm_vector=optional(request.harm_vector, "harm_vector", "task_vector"),
        harm_scale=request.harm_scale,
        arm=optional(request.arm, "arm", "adapter"),
    )
    return replace(combination, arm_backbone=own_backbone(session, tenant_id, combination))


def _manifest(combination: Combination, request: ProfileVersionCreateRequest) -> ProfileManifest:
    check_combination(combination)
    _check_sda(request.sda)
    guidance, parts = request.guidance, combination.parts()
    adapter, backbone = parts.adapter, parts.backbone()
    return ProfileManifest(
        base=ref_of(combination.base),
        backbone=backbone,
        harm_vector=ref_of(combination.harm_vector) if combination.harm_vector else None,
        harm_scale=backbone.harm_scale,
        arm=ref_of(combination.arm) if combination.arm else None,
        arm_backbone=ref_of(combination.arm_backbone) if combination.arm_backbone else None,
        attributes=adapter.attributes if adapter else [],
        loss_form=adapter.loss_form if adapter else None,
        guidance=_guided(guidance, request.bounds, adapter) if adapter else _unguided(guidance),
        bounds=request.bounds,
        chat=request.chat,
        **request.stages(),
    )


def _guided(guidance: Guidance, bounds: GuidanceBounds, adapter: AdapterMetadata) -> Guidance:
    bounds.check(guidance.guidance_weight, guidance.safe_set_delta, prefix="guidance.")
    try:
        preference_vector(guidance.preference, adapter.attributes)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=f"guidance.{error.param}", code=error.error_code) from None
    return guidance


def _unguided(guidance: Guidance) -> Guidance:
    """Set the guidance weight to 0, as there is no ARM; refuse guidance that needs one."""
    for field in ("preference", "guidance_weight"):
        if field in guidance.model_fields_set and getattr(guidance, field):
            raise InvalidRequest("needs an arm, and this version has none", param=f"guidance.{field}")
    return guidance.model_copy(update={"guidance_weight": 0.0})


def _check_sda(stage: Sda | None) -> None:
    """Refuse a strength beyond the stage's own bound."""
    bound = stage.bounds.max_strength if stage else None
    if stage is not None and bound is not None and stage.strength > bound:
        raise InvalidRequest(
            f"exceeds the version's own bound of {bound:g}", param="sda.strength", code="out_of_bounds"
        )
