"""The bundles in memory: loaded in the background, leased by requests, evicted when memory is short.

The least recently used one goes first. A request holds a lease from before it waits until its last token, and finishes
on the bundle it started on. A bundle is loaded in its own thread while others serve. Whatever can fail without memory
(download, hashes, parts that do not fit together) fails before anything is evicted, and nothing is evicted while there
is room. A bundle that no profile names any more drains: its requests finish, then it is freed. Bundles share their
dense weights, whose bytes count once (:mod:`armature_decoder.bundles.shared_bases`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from armature.contracts.artifacts import ArtifactRef
from armature.contracts.profiles import ProfileManifest
from armature.errors import ArmatureError, InsufficientMemory, ModelTooLarge, Unavailable
from armature.logging import get_logger
from armature_decoder.bundles.bundle import Bundle, BundleLease, BundleState, BundleStatus, Runtime, copy_of, for_caller
from armature_decoder.bundles.disk import DiskArtifact, DiskCache
from armature_decoder.bundles.loader import BundleLoader, BundleParts, LoadedBundle, Needs, check_parts
from armature_decoder.bundles.shared_bases import SharedBases
from armature_decoder.engine.engine import Engine
from armature_decoder.metrics import BundleMetrics

_log = get_logger(__name__)
_LOADERS = 4
_SETTLED: frozenset[BundleState] = frozenset({"absent", "ready", "failed"})


@dataclass(frozen=True)
class CachePolicy:
    """Bound on the bundles' memory in bytes, and the back-off of failed loads in seconds.

    The back-off starts at ``retry_min`` and doubles with every attempt up to ``retry_max``.
    """

    memory_bytes: int
    retry_min: float
    retry_max: float


class BundleCache:
    """The bundles of one decoder by :meth:`ProfileManifest.bundle_digest`.

    Profiles with the same parts share one.
    """

    def __init__(
        self,
        disk: DiskCache,
        loader: BundleLoader,
        start_engine: Callable[[LoadedBundle, str], Engine],
        policy: CachePolicy,
        metrics: BundleMetrics,
    ) -> None:
        self._disk = disk
        self._loader = loader
        self._start_engine = start_engine
        self._policy = policy
        self._metrics = metrics
        self._bases = SharedBases()
        self._lock = threading.Lock()
        self._bundles: dict[str, Bundle] = {}
        self._draining: list[Bundle] = []
        self._workers = ThreadPoolExecutor(_LOADERS, thread_name_prefix="bundle")

    def lease(self, manifest: ProfileManifest) -> BundleLease:
        """Claim the manifest's bundle, and start loading it if it is absent.

        Raises:
            Unavailable, ModelUnloadable: Its last load failed and it is still backing off.
        """
        with self._lock:
            bundle = self._start_if_needed(manifest)
            if bundle.state == "failed" and bundle.error is not None:
                raise for_caller(bundle.error)
            bundle.leases += 1
            bundle.last_used = time.monotonic()
        return BundleLease(bundle, self._release)

    def state(self, manifest: ProfileManifest) -> BundleState:
        """Return the state of the manifest's bundle."""
        return self.status(manifest).state

    def status(self, manifest: ProfileManifest) -> BundleStatus:
        """Return the state of the manifest's bundle, and why it is not loaded."""
        with self._lock:
            bundle = self._find(manifest.bundle_digest())
            return bundle.status if bundle else BundleStatus("absent")

    def runtimes(self) -> list[Runtime]:
        """List the models and engines of all ready bundles."""
        with self._lock:
            return [bundle.runtime for bundle in self._bundles.values() if bundle.runtime is not None]

    def counts(self) -> dict[str, int]:
        """Count bundles by state."""
        with self._lock:
            states = [bundle.state for bundle in [*self._bundles.values(), *self._draining]]
        return {state: states.count(state) for state in states}

    def used_bytes(self) -> int:
        """Return the bytes reserved for bundles that are in memory or being loaded."""
        with self._lock:
            return self._used()

    @property
    def base_bytes(self) -> int:
        """The part of :meth:`used_bytes` that dense weights take."""
        return self._bases.bytes

    def preload(self, manifest: ProfileManifest, *, may_evict: bool) -> None:
        """Start loading a bundle before any request waits for it; it evicts others only if ``may_evict``."""
        with self._lock:
            self._start_if_needed(manifest).may_evict |= may_evict

    def retry_failed(self) -> None:
        """Load failed bundles again whose back-off is over."""
        with self._lock:
            for bundle in filter(None, map(self._find, list(self._bundles))):
                if bundle.state == "failed":
                    self._start_if_needed(bundle.manifest)

    def retain(self, manifests: Iterable[ProfileManifest]) -> None:
        """Drain every bundle that ``manifests`` do not name."""
        live = {manifest.bundle_digest() for manifest in manifests}
        with self._lock:
            unnamed = [bundle for key, bundle in self._bundles.items() if key not in live]
            for bundle in unnamed:
                if bundle.state in _SETTLED:  # a bundle that is being loaded is left to the next call
                    self._drain(bundle)

    def close(self) -> None:
        """Stop every engine; requests that still run fail."""
        self._workers.shutdown(cancel_futures=True)
        with self._lock:
            bundles = [*self._bundles.values(), *self._draining]
            self._bundles, self._draining = {}, []
        for bundle in bundles:
            if bundle.runtime is not None:
                bundle.runtime.engine.stop()

    def _start_if_needed(self, manifest: ProfileManifest) -> Bundle:
        key = manifest.bundle_digest()
        bundle = self._find(key) or self._bundles.setdefault(key, Bundle(manifest, key))
        if bundle.wants_load:
            bundle.begin()
            self._workers.submit(self._load, bundle)
        return bundle

    def _find(self, key: str) -> Bundle | None:
        """The bundle of this digest. One whose engine has failed drains, and a failed one takes its place."""
        bundle = self._bundles.get(key)
        if bundle is not None and bundle.is_broken:
            self._drain(bundle)
            bundle = self._bundles[key] = bundle.replacement(self._policy.retry_min)
        return bundle

    def _release(self, bundle: Bundle) -> None:
        with self._lock:
            bundle.leases -= 1
            self._unload_if_unused(bundle)

    def _load(self, bundle: Bundle) -> None:
        started = time.monotonic()
        with ExitStack() as claims:
            try:
                runtime = self._prepare(bundle, claims)
            except Exception as error:
                self._metrics.failed(error)
                _log_failure(bundle, error)
                known = error if isinstance(error, ArmatureError) else Unavailable("the model can not be loaded")
                failure = copy_of(known)
            else:
                if runtime is not None:
                    with self._lock:
                        bundle.claims = claims.pop_all()
                        bundle.succeed(runtime)
                    seconds = time.monotonic() - started
                    self._metrics.loaded(seconds)
                    _log.info("bundle ready", bundle=bundle.key, seconds=round(seconds, 3))
                return
            self._fail(bundle, failure, claims)

    def _prepare(self, bundle: Bundle, claims: ExitStack) -> Runtime | None:
        """Download, check and load a bundle; ``claims`` collects what to release.

        Returns None if there is no room and no request waits for the bundle.
        """
        parts = self._fetch(bundle.manifest, claims)
        with self._lock:
            bundle.move("downloaded")
        check_parts(parts)
        if not self._make_room(bundle, self._loader.needs(parts), claims):
            return None
        loaded = self._loader.load(parts, self._bases)
        return Runtime(loaded, self._start_engine(loaded, bundle.key[:12]))

    def _fail(self, bundle: Bundle, error: ArmatureError, claims: ExitStack) -> None:
        """Release what the attempt claimed, recheck the files on disk, and start the back-off."""
        claims.close()
        for ref in bundle.manifest.artifacts.values():
            self._disk.recheck(ref)
        back_off = min(self._policy.retry_max, self._policy.retry_min * 2**bundle.attempts)
        with self._lock:
            bundle.fail(error, back_off)

    def _fetch(self, manifest: ProfileManifest, claims: ExitStack) -> BundleParts:
        def fetch(ref: ArtifactRef) -> DiskArtifact:
            artifact = self._disk.fetch(ref)
            claims.callback(self._disk.release, ref)
            return artifact

        return BundleParts(manifest, **{part: fetch(ref) for part, ref in manifest.artifacts.items()})

    def _make_room(self, bundle: Bundle, needs: Needs, claims: ExitStack) -> bool:
        """Reserve the bundle's bytes, evicting idle bundles, least recently used first, if there is no room.

        Dense weights that are in memory are claimed first, so that evicting their other bundles does not free them.
        If no request waits for the bundle it evicts none: it goes back to absent and the result is False.
        """
        if needs.total > (limit := self._policy.memory_bytes):
            raise ModelTooLarge(f"the model needs {needs.total} bytes; this decoder may use {limit} in all")
        owner = object()  # one per attempt: the next one may start before this one has released everything
        claims.callback(self._bases.release, owner)
        while True:
            with self._lock:
                fits = self._used() + needs.own + self._bases.missing_bytes(needs.bases) <= self._policy.memory_bytes
                self._bases.claim(owner, needs.bases, new=fits)
                if fits:
                    bundle.bytes = needs.own
                    bundle.move("loading")
                    return True
                if not (bundle.leases or bundle.may_evict):
                    bundle.error = self._no_room(needs.total)
                    bundle.move("absent")
                    return False
                victim = self._pick_victim(needs.total)
                self._forget(victim)
            self._unload(victim)
            self._metrics.evictions.inc()

    def _pick_victim(self, needed: int) -> Bundle:
        idle = [other for other in self._bundles.values() if other.state == "ready" and not other.leases]
        if not idle:
            raise self._no_room(needed)
        return min(idle, key=lambda other: other.last_used)

    def _no_room(self, needed: int) -> InsufficientMemory:
        used, limit = self._used(), self._policy.memory_bytes
        return InsufficientMemory(f"the model needs {needed} bytes; {used} of {limit} are in use")

    def _forget(self, bundle: Bundle) -> None:
        """Take the bundle out of reach of new requests. Called under the lock."""
        del self._bundles[bundle.key]
        if bundle.state == "ready":
            bundle.move("draining")
            self._draining.append(bundle)

    def _drain(self, bundle: Bundle) -> None:
        """Forget the bundle, and unload it after its last request."""
        self._forget(bundle)
        self._unload_if_unused(bundle)

    def _unload_if_unused(self, bundle: Bundle) -> None:
        if bundle.state == "draining" and not bundle.leases:
            self._workers.submit(self._unload, bundle)

    def _unload(self, bundle: Bundle) -> None:
        """Stop the bundle's engine and drop its model; return when its memory is free."""
        assert bundle.runtime is not None
        bundle.runtime.engine.stop()
        bundle.runtime, bundle.settled = None, Future()
        bundle.claims.close()  # frees the dense weights too, unless another bundle owns them
        self._loader.free_memory()
        with self._lock:
            bundle.move("absent")
            self._draining.remove(bundle)
        _log.info("bundle unloaded", bundle=bundle.key)

    def _used(self) -> int:
        return self._bases.bytes + sum(bundle.bytes for bundle in [*self._bundles.values(), *self._draining])


def _log_failure(bundle: Bundle, error: Exception) -> None:
    """Log a failed load: an :class:`ArmatureError` in one line, anything else, a bug, with its traceback."""
    if isinstance(error, ArmatureError):
        _log.error("bundle failed to load", bundle=bundle.key, code=error.error_code, error=error.message)
    else:
        _log.error("bundle failed to load", bundle=bundle.key, exc_info=error)
