"""Who may call and what they call: keys, models, and the bundle that stands behind a name right now."""

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
from armature_decoder.bundles.bundle import BundleLease
from armature_decoder.bundles.cache import BundleCache

Alias = tuple[str, str, str]
"""Tenant id, profile, alias."""

Track = tuple[Alias, Literal["stable", "canary"]]
"""What answers for an alias: the version it points at, or the one that has a share of its requests."""


@dataclass(frozen=True)
class _Index:
    """A snapshot, laid out for look-ups."""

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
    bundle is ready; a bundle that fails to load therefore takes nothing down. Each answer says which version it is.
    """

    def __init__(self, cache: BundleCache, preload: bool) -> None:
        self._cache = cache
        self._preload = preload
        self._lock = threading.Lock()
        self._index: _Index | None = None
        self._answering: dict[Track, ServedVersion] = {}

    @property
    def ready(self) -> bool:
        """A snapshot is loaded."""
        return self._index is not None

    def update(self, snapshot: ServingSnapshot) -> None:
        """Serve by a new snapshot from now on."""
        index = _Index.of(snapshot)
        with self._lock:
            self._index = index
            self._answering = {track: version for track, version in self._answering.items() if track in index.tracks}
        if self._preload:
            for track, version in index.tracks.items():
                self._cache.preload(version.manifest, may_evict=track in self._answering)
        self.tick()

    def tick(self) -> None:
        """Switch aliases whose new bundle has become ready, drain what no alias needs, try failed loads again."""
        with self._lock:
            tracks = self._index.tracks if self._index else {}
            for track, version in tracks.items():
                if self._cache.state(version.manifest) == "ready":
                    self._answering[track] = version
            needed = [version.manifest for version in [*tracks.values(), *self._answering.values()]]
        self._cache.retain(needed)
        self._cache.retry_failed()

    def authenticate(self, token: str) -> ServedTenant:
        """The tenant whose key this is.

        Raises:
            Unauthenticated: Unknown, wrong or expired.
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

    def models(self, tenant: ServedTenant) -> list[tuple[ServedModel, str]]:
        """The tenant's models and the states of their bundles."""
        models = [model for (owner, _, _), model in self._require_index().models.items() if owner == tenant.id]
        return [(model, self._cache.state(model.manifest)) for model in models]

    def model(self, tenant: ServedTenant, name: str) -> tuple[ServedModel, str]:
        """The tenant's model ``profile`` or ``profile@alias``, and the state of its bundle.

        Raises:
            NotFound: The tenant has no such model.
        """
        _, model = self._find(tenant, name)
        return model, self._cache.state(model.manifest)

    def acquire(
        self, tenant: ServedTenant, name: str, user: str | None = None, harm_scale: float | None = None
    ) -> tuple[ServedModel, ServedVersion, BundleLease]:
        """The version that answers to ``profile`` or ``profile@alias``, with a lease on its bundle.

        Args:
            user: Whom a canary split keeps on one version; without one each request is drawn for itself.
            harm_scale: Answer at this scale of the harm vector; None: at whichever the version has.

        Raises:
            NotFound: The tenant has no such model.
            InvalidRequest: None of the profile's aliases has the scale.
            ArmatureError: Its bundle failed to load and no earlier version is there to answer.
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
            # a share of the requests must not fail because the newcomer is not there yet
            version = canary if self._cache.state(canary.manifest) == "ready" else version
        return version

    def _at_scale(self, alias: Alias, harm_scale: float) -> tuple[ServedModel, ServedVersion]:
        """An ARM goes with one scale, so other scales of a profile are other versions: those its aliases serve.

        The alias that was named comes first, then the newest version.
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
        """The version that answers for a track now, on the way to the one that should."""
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
            raise NotFound("you have no model of this name", param="model", code="model_not_found")
        return key, model

    def _require_index(self) -> _Index:
        if self._index is None:
            raise Unavailable("the decoder has not received its serving snapshot yet", code="not_ready")
        return self._index


def model_id(model: ServedModel) -> str:
    """What a client writes as ``model``: the live alias goes without saying."""
    return model.profile if model.alias == LIVE_ALIAS else f"{model.profile}@{model.alias}"


def _share(alias: Alias, model: ServedModel, user: str | None) -> float:
    """Where in [0, 1) a request falls. A user stays there while the weight grows, and moves with the next canary."""
    if user is None or model.canary is None:
        return random.random()
    text = "\0".join((*alias, str(model.canary.version), user))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56
