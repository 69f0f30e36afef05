"""``/v1/profiles``: their versions and their aliases."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from armature.contracts.base import Name
from armature.contracts.pages import Page
from armature.contracts.profiles import (
    AliasMoveRequest,
    AliasView,
    ProfileCreateRequest,
    ProfileVersionCreateRequest,
    ProfileVersionView,
    ProfileView,
)
from armature.db.models import Profile
from armature_api.deps import CallerDep, ReaderDep, SessionDep, scoped_router
from armature_api.profiles import service
from armature_api.rows import PageDep, newest_first, visible

router = scoped_router("profiles", "profiles")


@router.post("/profiles", status_code=201)
def create_profile(request: ProfileCreateRequest, caller: CallerDep, session: SessionDep) -> ProfileView:
    """Create an empty profile."""
    return service.profile_views(session, [service.create_profile(session, caller.tenant_id, request)])[0]


@router.get("/profiles")
def list_profiles(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[ProfileView]:
    """List profiles, newest first."""
    rows, has_more = newest_first(session, Profile, visible(Profile, caller.tenant_id), page)
    return Page.of(service.profile_views(session, rows), has_more)


@router.get("/profiles/{name}")
def get_profile(name: str, caller: CallerDep, session: ReaderDep) -> ProfileView:
    """Show a profile and where its aliases point."""
    return service.profile_views(session, [service.find_profile(session, caller.tenant_id, name)])[0]


@router.post("/profiles/{name}/versions", status_code=201)
def create_version(
    name: str, request: ProfileVersionCreateRequest, caller: CallerDep, session: SessionDep, response: Response
) -> ProfileVersionView:
    """Freeze a base model, a harm vector, an ARM and guidance defaults under the profile's next number."""
    version = service.create_version(session, caller.tenant_id, name, request)
    response.headers["Location"] = f"/v1/profiles/{name}/versions/{version.version}"
    return service.version_view(name, version)


@router.get("/profiles/{name}/versions")
def list_versions(
    name: str,
    caller: CallerDep,
    session: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int | None, Query(ge=1, lt=2**31, description="the last version of the page before")] = None,
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
    """Point an alias at a version: this is going live. ``if_version`` guards against a move in between."""
    return service.move_alias(session, caller.tenant_id, name, alias, request)
