"""Caches of bundles over a local store, as the tests of loading and sharing want them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from armature.contracts.profiles import ProfileManifest
from armature.errors import ArmatureError
from armature.inference.batch import GuidedBatch
from armature.inference.model import BackendName, GuidedModel
from armature.storage.base import ArtifactStore
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles.bundle import BundleLease, Runtime
from armature_decoder.bundles.cache import BundleCache, CachePolicy
from armature_decoder.bundles.disk import DiskCache
from armature_decoder.bundles.loader import BundleLoader, LoadedBundle, WorkingMemory
from armature_decoder.engine.engine import Engine
from armature_decoder.engine.scheduler import Scheduler
from armature_decoder.metrics import BundleMetrics

WAIT = 30
ROOMY = 1 << 30
WORKING = WorkingMemory(kv=1 << 18, prefixes=1 << 18, max_slots=4)


class CountingStore(LocalArtifactStore):
    """The local store, counting what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    def get_file(self, key: str, path: Path) -> None:
        """Count, then read."""
        self.reads.append(key)
        super().get_file(key, path)


class Caches:
    """Makes caches that are closed at the end."""

    def __init__(self, store: ArtifactStore, root: Path, disk_bytes: int = ROOMY) -> None:
        self.disk = DiskCache(store, root, disk_bytes)
        self.made: list[BundleCache] = []

    def make(
        self,
        memory: int = ROOMY,
        retry: float = 60.0,
        backend: BackendName = "auto",
        batch: Callable[[GuidedModel], GuidedBatch] = GuidedBatch,
    ) -> BundleCache:
        """One cache more, on the same disk, with small engines."""

        def start_engine(loaded: LoadedBundle, name: str) -> Engine:
            return Engine(batch(loaded.model), Scheduler(4, 16), name)

        metrics = BundleMetrics(CollectorRegistry())
        policy = CachePolicy(memory, retry, retry)
        loader = BundleLoader("cpu", None, WORKING, backend)
        self.made.append(BundleCache(self.disk, loader, start_engine, policy, metrics))
        return self.made[-1]

    def close(self) -> None:
        """Stop all engines."""
        for cache in self.made:
            cache.close()


def ready(lease: BundleLease) -> Runtime:
    """The runtime, as soon as it is there."""
    return lease.settled.result(timeout=WAIT)


def use(cache: BundleCache, manifest: ProfileManifest) -> Runtime:
    """Load and give back."""
    lease = cache.lease(manifest)
    runtime = ready(lease)
    lease.release()
    return runtime


def failure(cache: BundleCache, manifest: ProfileManifest) -> ArmatureError:
    """Why the bundle could not be loaded."""
    lease = cache.lease(manifest)
    error = lease.settled.exception(timeout=WAIT)
    lease.release()
    assert isinstance(error, ArmatureError)
    return error
