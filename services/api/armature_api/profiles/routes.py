"""Routes of ``/v1/profiles``, their versions, aliases and gates."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Query

from armature.contracts.aliases import (
    AliasGate,
    AliasGateView,
    AliasMoveRequest,
    AliasMoveView,
    AliasRollbackRequest,
    AliasView,
)
from armature.contracts.base import Name
from armature.contracts.pages import Page
from armature.contracts.profiles import (
    ProfileCreateRequest,
    ProfileVersionCreateRequest,
    ProfileVersionView,
    ProfileView,
)
from armature.db.models import Profile
from armature_api.deps import CallerDep, ReaderDep, SessionDep, scoped_router
from armature_api.kit.idempotency import OnceDep
from armature_api.kit.queries import PageDep, newest_first, visible_parts
from armature_api.profiles import aliases, gates, service

router = scoped_router("profiles", "profiles")

_DEFAULT_ROLLBACK = AliasRollbackRequest()  # the body is optional


@router.post("/profiles", status_code=201)
def create_profile(request: ProfileCreateRequest, caller: CallerDep, session: SessionDep, once: OnceDep) -> ProfileView:
    """Create an empty profile."""

    def create() -> ProfileView:
        return service.profile_views(session, [service.create_profile(session, caller.tenant_id, request)])[0]

    return once.answer(session, ProfileView, request, create)


@router.get("/profiles")
def list_profiles(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[ProfileView]:
    """List profiles, newest first."""
    rows, has_more = newest_first(session, Profile, visible_parts(Profile, caller.tenant_id), page)
    return Page.of(service.profile_views(session, rows), has_more)


@router.get("/profiles/{name}")
def get_profile(name: str, caller: CallerDep, session: ReaderDep) -> ProfileView:
    """Show a profile and where its aliases point."""
    return service.profile_views(session, [service.find_profile(session, caller.tenant_id, name)])[0]


@router.post("/profiles/{name}/versions", status_code=201)
def create_version(
    name: str, request: ProfileVersionCreateRequest, caller: CallerDep, session: SessionDep, once: OnceDep
) -> ProfileVersionView:
    """Freeze a base model, a harm vector, an ARM and guidance defaults under the profile's next number."""

    def create() -> ProfileVersionView:
        version = service.create_version(session, caller.tenant_id, name, request)
        once.response.headers["Location"] = f"/v1/profiles/{name}/versions/{version.version}"
        return service.version_view(name, version)

    return once.answer(session, ProfileVersionView, request, create)


@router.get("/profiles/{name}/versions")
def list_versions(
    name: str,
    caller: CallerDep,
    session: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int | None, Query(ge=1, lt=2**31, description="the previous page's last version")] = None,
) -> Page[ProfileVersionView]:
    """List a profile's versions, newest first."""
    profile = service.find_profile(session, caller.tenant_id, name)
    versions, has_more = service.versions_before(session, profile, after, limit)
    return Page.of([service.version_view(name, version) for version in versions], has_more, key="version")


@router.get("/profiles/{name}/versions/{number}")
def get_version(name: str, number: int, caller: CallerDep, session: ReaderDep) -> ProfileVersionView:
    """Show a version."""
    profile = service.find_profile(session, caller.tenant_id, name)
    return service.version_view(name, service.find_version(session, profile, number))


@router.put("/profiles/{name}/aliases/{alias}")
def move_alias(name: str, alias: Name, request: AliasMoveRequest, caller: CallerDep, session: SessionDep) -> AliasView:
    """Point an alias at a version; ``live`` goes live. ``if_version`` detects a concurrent move."""
    return aliases.move_alias(session, caller, name, alias, request)


@router.get("/profiles/{name}/aliases/{alias}")
def get_alias(name: str, alias: Name, caller: CallerDep, session: ReaderDep) -> AliasView:
    """Show what an alias points at."""
    profile = service.find_profile(session, caller.tenant_id, name)
    return aliases.alias_view(name, aliases.find_alias(session, profile, alias))


@router.post("/profiles/{name}/aliases/{alias}/rollback")
def roll_back_alias(
    name: str,
    alias: Name,
    caller: CallerDep,
    session: SessionDep,
    once: OnceDep,
    request: Annotated[AliasRollbackRequest, Body()] = _DEFAULT_ROLLBACK,
) -> AliasView:
    """Point an alias back at its previous version, without a canary; no gate applies."""
    return once.answer(session, AliasView, request, lambda: aliases.roll_back(session, caller, name, alias, request))


@router.get("/profiles/{name}/aliases/{alias}/history")
def list_alias_moves(
    name: str,
    alias: Name,
    caller: CallerDep,
    session: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int | None, Query(ge=1, lt=2**31, description="the previous page's last seq")] = None,
) -> Page[AliasMoveView]:
    """List an alias' moves, newest first."""
    profile = service.find_profile(session, caller.tenant_id, name)
    moves, has_more = aliases.moves_before(session, profile, alias, after, limit)
    return Page.of(moves, has_more, key="seq")


@router.put("/profiles/{name}/aliases/{alias}/gate")
def set_gate(name: str, alias: Name, request: AliasGate, caller: CallerDep, session: SessionDep) -> AliasGateView:
    """Let an alias move only to versions whose evaluations keep these rules. The alias need not exist yet."""
    return gates.set_gate(session, service.find_profile(session, caller.tenant_id, name, lock=True), alias, request)


@router.get("/profiles/{name}/aliases/{alias}/gate")
def get_gate(name: str, alias: Name, caller: CallerDep, session: ReaderDep) -> AliasGateView:
    """Show an alias' gate."""
    return gates.find_gate(session, service.find_profile(session, caller.tenant_id, name), alias)


@router.delete("/profiles/{name}/aliases/{alias}/gate", status_code=204)
def remove_gate(name: str, alias: Name, caller: CallerDep, session: SessionDep) -> None:
    """Remove an alias' gate."""
    gates.remove_gate(session, service.find_profile(session, caller.tenant_id, name, lock=True), alias)
