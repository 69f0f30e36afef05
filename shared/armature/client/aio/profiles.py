"""``client.profiles`` and ``client.profiles.aliases``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.errors import ConflictError
from armature.client.wire import Call
from armature.contracts.aliases import AliasGate, AliasGateView, AliasMoveView, AliasView, CanarySplit
from armature.contracts.profiles import LIVE_ALIAS, ProfileVersionCreateRequest, ProfileVersionView, ProfileView


class AsyncAliases:
    """Aliases of a profile, such as ``live``."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def move(
        self,
        profile: str,
        version: int,
        alias: str = LIVE_ALIAS,
        *,
        if_version: int | None = None,
        canary: CanarySplit | None = None,
    ) -> AliasView:
        """Point an alias at a version; ``live`` is the alias that is served by default."""
        split = None if canary is None else canary.model_dump(mode="json")
        body = {"version": version, "if_version": if_version, "canary": split}
        return await self._transport.get(AliasView, "PUT", _path(profile, alias), json=body)

    async def retrieve(self, profile: str, alias: str = LIVE_ALIAS) -> AliasView:
        """Retrieve the version that an alias points at."""
        return await self._transport.get(AliasView, "GET", _path(profile, alias))

    async def roll_back(self, profile: str, alias: str = LIVE_ALIAS, *, if_version: int | None = None) -> AliasView:
        """Point an alias back at the previous version."""
        body = {"if_version": if_version}
        return await self._transport.get(AliasView, "POST", f"{_path(profile, alias)}/rollback", json=body)

    def history(self, profile: str, alias: str = LIVE_ALIAS) -> AsyncPages[AliasMoveView]:
        """List an alias' moves, newest first."""
        return AsyncPages(self._transport, AliasMoveView, f"{_path(profile, alias)}/history", limit=100)

    async def set_gate(self, profile: str, gate: AliasGate, alias: str = LIVE_ALIAS) -> AliasGateView:
        """Gate an alias: it moves only to versions whose evaluations meet every rule."""
        body = gate.model_dump(mode="json")
        return await self._transport.get(AliasGateView, "PUT", f"{_path(profile, alias)}/gate", json=body)

    async def remove_gate(self, profile: str, alias: str = LIVE_ALIAS) -> None:
        """Remove an alias' gate."""
        await self._transport.send(Call("DELETE", f"{_path(profile, alias)}/gate"))


class AsyncProfiles:
    """Profiles: named sequences of versions."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self.aliases = AsyncAliases(transport)

    async def create(self, name: str, description: str = "") -> ProfileView:
        """Create an empty profile."""
        body = {"name": name, "description": description}
        return await self._transport.get(ProfileView, "POST", "profiles", json=body)

    async def ensure(self, name: str, description: str = "") -> ProfileView:
        """Retrieve the profile of a name, created if missing."""
        try:
            return await self.create(name, description)
        except ConflictError:
            return await self.retrieve(name)

    async def retrieve(self, name: str) -> ProfileView:
        """Retrieve a profile with its aliases."""
        return await self._transport.get(ProfileView, "GET", f"profiles/{name}")

    def list(self, *, limit: int = 100) -> AsyncPages[ProfileView]:
        """List profiles, newest first."""
        return AsyncPages(self._transport, ProfileView, "profiles", limit=limit)

    async def create_version(
        self, name: str, version: ProfileVersionCreateRequest | Mapping[str, Any]
    ) -> ProfileVersionView:
        """Freeze a combination of parts as the profile's next version."""
        given = version.model_dump(mode="json") if isinstance(version, ProfileVersionCreateRequest) else dict(version)
        return await self._transport.get(ProfileVersionView, "POST", f"profiles/{name}/versions", json=given)

    async def retrieve_version(self, name: str, version: int) -> ProfileVersionView:
        """Retrieve a version."""
        return await self._transport.get(ProfileVersionView, "GET", f"profiles/{name}/versions/{version}")

    def list_versions(self, name: str, *, limit: int = 100) -> AsyncPages[ProfileVersionView]:
        """List a profile's versions, newest first."""
        return AsyncPages(self._transport, ProfileVersionView, f"profiles/{name}/versions", limit=limit)


def _path(profile: str, alias: str) -> str:
    return f"profiles/{profile}/aliases/{alias}"
