"""The snapshot's tenants, keys and models, and the version and bundle that answer for each alias."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from armature.contracts.profiles import LIVE_ALIAS
from armature.contracts.serving import ServedKey, ServedModel, ServedTenant, ServedVersion, ServingSnapshot
from armature.errors import InvalidRequest, NotFound, PermissionDenied, Unauthenticated, Unavailable
from armature.http.auth import same_secret, split_token
from armature_decoder.bundles.bundle import BundleLease, BundleStatus
from armature_decoder.bundles.cache import BundleCache

Alias = tuple[str, str, str]
"""Tenant id, profile, alias."""

Track = tuple[Alias, Literal["stable", "canary"]]
"""A version of an alias: the one it points at, or the one that gets a share of its requests."""


@dataclass(frozen=True)
class _Index:
    """A snapshot's keys by id, models by alias and versions by track."""

    keys: dict[str, tuple[ServedKey, ServedTenant]] = field(default_factory=dict)
    models: dict[Alias, ServedModel] = field(default_factory=dict)
    tracks: dict[Track, ServedVersion] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: ServingSnapshot) -> _Index:
        keys = {key.id: (key, tenant) for tenant in snapshot.tenants for key in tenant.keys}
        models = {(t.id, model.profile, model.alias): model for t in snapshot.tenants for model in t.models}
        tracks: dict[Track, ServedVersion] = {(alias, "stable"): model for alias, model in models.items()}
        tracks |= {(alias, "canary"): model.canary for alias, model in models.items() if model.canary}
        return cls(keys, models, tracks)


class Profiles:
    """The newest snapshot, and for each alias the version that answers.

    When an alias moves to a version whose bundle is not loaded, the version before goes on answering until the new
    bundle is ready, so a bundle that fails to load takes nothing down. Each answer names its version.
    """

    def __init__(self, cache: BundleCache, preload: bool) -> None:
        self._cache = cache
        self._preload = preload
        self._lock = threading.Lock()
        self._index: _Index | None = None
        self._answering: dict[Track, ServedVersion] = {}

    @property
    def ready(self) -> bool:
        """Whether a snapshot is loaded."""
        return self._index is not None

    def update(self, snapshot: ServingSnapshot) -> None:
        """Replace the snapshot, start loading its bundles if they are preloaded, and :meth:`tick`."""
        index = _Index.of(snapshot)
        with self._lock:
            self._index = index
            self._answering = {track: version for track, version in self._answering.items() if track in index.tracks}
        if self._preload:
            for track, version in index.tracks.items():
                self._cache.preload(version.manifest, may_evict=track in self._answering)
        self.tick()

    def tick(self) -> None:
        """Switch aliases to bundles that became ready, drain unneeded bundles, and retry failed loads.

        A bundle is unneeded if no alias names it and none still answers with it.
        """
        with self._lock:
            tracks = self._index.tracks if self._index else {}
            for track, version in tracks.items():
                if self._cache.state(version.manifest) == "ready":
                    self._answering[track] = version
            needed = [version.manifest for version in [*tracks.values(), *self._answering.values()]]
        self._cache.retain(needed)
        self._cache.retry_failed()

    def authenticate(self, token: str) -> ServedTenant:
        """Find the tenant that a key belongs to.

        Raises:
            Unauthenticated: The key is unknown, wrong or expired.
            PermissionDenied: The key lacks the scope ``generate``.
            Unavailable: No snapshot has been loaded yet.
        """
        key_id, secret_sha256 = split_token(token)
        key, tenant = self._require_index().keys.get(key_id, (None, None))
        matches = same_secret(secret_sha256, key.secret_sha256 if key else None)
        if key is None or tenant is None or not matches or (key.expires_at or float("inf")) <= time.time():
            raise Unauthenticated("the API key is not valid")
        if "generate" not in key.scopes:
            raise PermissionDenied("the API key lacks the scope 'generate'")
        return tenant

    def models(self, tenant: ServedTenant) -> list[tuple[ServedModel, BundleStatus]]:
        """List the tenant's models with the status of their bundles."""
        models = [model for (owner, _, _), model in self._require_index().models.items() if owner == tenant.id]
        return [(model, self._cache.status(model.manifest)) for model in models]

    def model(self, tenant: ServedTenant, name: str) -> tuple[ServedModel, BundleStatus]:
        """Find the tenant's model ``profile`` or ``profile@alias``, and the status of its bundle.

        Raises:
            NotFound: The tenant has no such model.
        """
        _, model = self._find(tenant, name)
        return model, self._cache.status(model.manifest)

    def acquire(
        self, tenant: ServedTenant, name: str, user: str | None = None, harm_scale: float | None = None
    ) -> tuple[ServedModel, ServedVersion, BundleLease]:
        """Choose the version that answers for ``profile`` or ``profile@alias``, and lease its bundle.

        Args:
            tenant: The tenant that asks.
            name: The model's name.
            user: The end user, whose requests a traffic split keeps on one version. None: each is drawn on its own.
            harm_scale: The scale of the harm vector to answer at. None: the version's own.

        Raises:
            NotFound: The tenant has no such model.
            InvalidRequest: None of the profile's aliases has the scale.
            Unavailable, ModelUnloadable: The bundle failed to load and no earlier version is ready.
        """
        with self._lock:
            alias, model = self._find(tenant, name)
            version = self._choose(alias, model, user)
            if harm_scale is not None and version.manifest.harm_scale != harm_scale:
                model, version = self._at_scale(alias, harm_scale)
            return model, version, self._cache.lease(version.manifest)

    def _choose(self, alias: Alias, model: ServedModel, user: str | None) -> ServedVersion:
        version = self._answer((alias, "stable"), model)
        if model.canary is not None and _share(alias, model, user) < model.canary.weight:
            canary = self._answer((alias, "canary"), model.canary)
            # else a share of the requests would fail until the canary's bundle is ready
            version = canary if self._cache.state(canary.manifest) == "ready" else version
        return version

    def _at_scale(self, alias: Alias, harm_scale: float) -> tuple[ServedModel, ServedVersion]:
        """Find the version at ``harm_scale`` among those that the profile's aliases serve.

        An ARM is trained at one scale, so another scale is another version. The named alias comes first, then the
        newest version.
        """
        aliases = {key: model for key, model in self._require_index().models.items() if key[:2] == alias[:2]}
        served = [(key, model, self._answer((key, "stable"), model)) for key, model in aliases.items()]
        fitting = [entry for entry in served if entry[2].manifest.harm_scale == harm_scale]
        if not fitting:
            scales = ", ".join(f"{scale:g}" for scale in sorted({entry[2].manifest.harm_scale for entry in served}))
            raise InvalidRequest(
                f"this profile is served at harm scale {scales}", param="harm_scale", code="harm_scale_not_served"
            )
        _, model, version = max(fitting, key=lambda entry: (entry[0] == alias, entry[2].version))
        return model, version

    def _answer(self, track: Track, target: ServedVersion) -> ServedVersion:
        """Return the target version once it is ready; until then the version before it, if that is ready."""
        answering = self._answering.get(track, target)
        if self._cache.state(target.manifest) == "ready":
            self._answering[track] = target
        elif self._cache.state(answering.manifest) == "ready":
            self._cache.preload(target.manifest, may_evict=True)
            return answering
        return target

    def _find(self, tenant: ServedTenant, name: str) -> tuple[Alias, ServedModel]:
        profile, at, alias = name.partition("@")
        key = (tenant.id, profile, alias if at else LIVE_ALIAS)
        model = self._require_index().models.get(key)
        if model is None:
            raise NotFound("the tenant has no model of this name", param="model", code="model_not_found")
        return key, model

    def _require_index(self) -> _Index:
        if self._index is None:
            raise Unavailable("the decoder has not received its serving snapshot yet", code="not_ready")
        return self._index


def model_id(model: ServedModel) -> str:
    """Name the model as clients write it: ``profile@alias``, or ``profile`` for the live alias."""
    return model.profile if model.alias == LIVE_ALIAS else f"{model.profile}@{model.alias}"


def _share(alias: Alias, model: ServedModel, user: str | None) -> float:
    """Place a request in [0, 1): at random, or by its ``user``.

    A place by user lets a growing weight keep the canary's users. The next canary places users anew.
    """
    if user is None or model.canary is None:
        return random.random()
    text = "\0".join((*alias, str(model.canary.version), user))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56
