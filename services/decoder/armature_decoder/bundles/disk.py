"""Artifacts on the decoder's disk: by digest, verified on arrival, downloaded once for all callers.

Their bytes are bounded: claimed artifacts stay, the others are evicted least recently used first.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef
from armature.errors import ArtifactCorrupt, InsufficientMemory
from armature.logging import get_logger
from armature.storage.artifacts import fetch_artifact, file_sha256, read_manifest
from armature.storage.base import ArtifactStore, ObjectNotFound

_log = get_logger(__name__)


@dataclass(frozen=True)
class DiskArtifact:
    """A verified artifact: its folder, manifest and digest."""

    folder: Path
    manifest: ArtifactManifest
    digest: str


class DiskCache:
    """An LRU cache of artifacts on disk.

    Files are in ``<root>/<digest>/``, their manifest, written last, in ``<digest>.json``. A folder without its manifest
    is an unfinished download: it is swept at the next start and fetched again. The manifest's modification time is when
    the artifact was last used.

    Args:
        store: Where artifacts come from.
        root: The cache's folder, used by this process alone.
        limit_bytes: Bound on the bytes of all artifacts together.
    """

    def __init__(self, store: ArtifactStore, root: Path, limit_bytes: int) -> None:
        self._store = store
        self._root = root
        self._limit = limit_bytes
        self._digest_locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._claims: Counter[str] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        self._sizes = self._sweep()

    @property
    def used_bytes(self) -> int:
        """Bytes of all artifacts on disk or being downloaded."""
        with self._lock:
            return sum(self._sizes.values())

    def fetch(self, ref: ArtifactRef) -> DiskArtifact:
        """Claim an artifact, downloading it if it is not on disk.

        A second caller waits for the first download.

        Raises:
            ArtifactCorrupt: The store's bytes are missing or do not match the digests; nothing is kept.
            InsufficientMemory: The artifact does not fit on the disk beside those that are claimed.
            StorageUnavailable: The store does not answer and there is no copy on disk.
        """
        with self._lock:  # before the disk is read, or another download may evict the artifact in between
            self._claims[ref.digest] += 1
        try:
            with self._digest_lock(ref.digest):
                manifest = self._read_manifest(ref.digest) or self._download(ref)
                os.utime(self._manifest_path(ref.digest))
        except BaseException:
            self.release(ref)
            raise
        return DiskArtifact(self._root / ref.digest, manifest, ref.digest)

    def release(self, ref: ArtifactRef) -> None:
        """End a claim; the artifact stays as long as there is room."""
        with self._lock:
            self._claims[ref.digest] -= 1

    def recheck(self, ref: ArtifactRef) -> None:
        """Hash the copy on disk again and delete it if it is damaged, so that the next fetch downloads it.

        The first hashing holds no lock, so it delays no fetch of an intact copy.
        """
        if not self._is_intact(ref.digest):
            with self._digest_lock(ref.digest):  # or a download in progress looks like damage
                if not self._is_intact(ref.digest):
                    with self._lock:
                        self._remove(ref.digest)

    def _is_intact(self, digest: str) -> bool:
        manifest, folder = self._read_manifest(digest), self._root / digest
        return manifest is not None and all(_matches(folder / file.path, file.sha256) for file in manifest.files)

    def _download(self, ref: ArtifactRef) -> ArtifactManifest:
        shutil.rmtree(self._root / ref.digest, ignore_errors=True)
        try:
            self._make_room(ref.digest, _size(read_manifest(self._store, ref)))
            manifest = fetch_artifact(self._store, ref, self._root / ref.digest)
            self._write_manifest(ref.digest, manifest)
        except ObjectNotFound as error:
            raise ArtifactCorrupt(f"artifact {ref.digest} is not in the store") from error
        finally:
            with self._lock:
                if not self._manifest_path(ref.digest).exists():
                    self._sizes.pop(ref.digest, None)
        return manifest

    def _make_room(self, digest: str, needed: int) -> None:
        """Reserve bytes for a download, evicting artifacts without a claim."""
        with self._lock:
            self._sizes.pop(digest, None)
            idle = sorted((held for held in self._sizes if not self._claims[held]), key=self._used_at)
            while sum(self._sizes.values()) + needed > self._limit:
                if not idle:
                    raise InsufficientMemory(
                        f"an artifact of {needed} bytes does not fit on the decoder's disk: {sum(self._sizes.values())}"
                        f" of {self._limit} are in use",
                        code="insufficient_disk",
                    )
                _log.info("artifact evicted from disk", digest=idle[0])
                self._remove(idle.pop(0))
            self._sizes[digest] = needed

    def _sweep(self) -> dict[str, int]:
        """Delete unfinished downloads of earlier processes; return the sizes of finished ones by digest."""
        digests = {path.stem for path in self._root.glob("*.json")}
        found = {digest: manifest for digest in digests if (manifest := self._read_manifest(digest))}
        kept = {*found, *(f"{digest}.json" for digest in found)}
        for path in self._root.iterdir():
            if path.name not in kept:
                _delete(path)
        return {digest: _size(manifest) for digest, manifest in found.items()}

    def _remove(self, digest: str) -> None:
        self._sizes.pop(digest, None)
        self._manifest_path(digest).unlink(missing_ok=True)
        shutil.rmtree(self._root / digest, ignore_errors=True)

    def _used_at(self, digest: str) -> float:
        path = self._manifest_path(digest)
        return path.stat().st_mtime if path.exists() else 0.0

    def _digest_lock(self, digest: str) -> threading.Lock:
        return self._digest_locks.setdefault(digest, threading.Lock())

    def _manifest_path(self, digest: str) -> Path:
        return self._root / f"{digest}.json"

    def _read_manifest(self, digest: str) -> ArtifactManifest | None:
        try:
            manifest = ArtifactManifest.model_validate_json(self._manifest_path(digest).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return manifest if manifest.digest() == digest and (self._root / digest).is_dir() else None

    def _write_manifest(self, digest: str, manifest: ArtifactManifest) -> None:
        partial = self._manifest_path(digest).with_suffix(".partial")
        partial.write_text(manifest.model_dump_json())
        partial.replace(self._manifest_path(digest))


def _size(manifest: ArtifactManifest) -> int:
    return sum(file.size for file in manifest.files)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _matches(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:  # the artifact may be evicted while it is hashed
        return False
