"""Artifacts on the decoder's disk: by digest, verified when they arrive, fetched once however many ask.

What is claimed stays. What is not makes room for newcomers, least recently used first, so the disk holds at most so
many bytes.
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
    """An artifact's folder and what its manifest says."""

    folder: Path
    manifest: ArtifactManifest
    digest: str


class DiskCache:
    """``<root>/<digest>/`` holds an artifact's files, ``<root>/<digest>.json`` its manifest, written last.

    A folder without its manifest file is not there: it is swept at the next start, and fetched again. The manifest
    file's time is when the artifact was last used.

    Args:
        store: Where artifacts come from.
        root: The folder, this process' own.
        limit_bytes: Of all artifacts together.
    """

    def __init__(self, store: ArtifactStore, root: Path, limit_bytes: int) -> None:
        self._store = store
        self._root = root
        self._limit = limit_bytes
        self._locks: dict[str, threading.Lock] = {}
        self._books = threading.Lock()
        self._claims: Counter[str] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        self._sizes = self._take_stock()

    @property
    def used_bytes(self) -> int:
        """What the artifacts on disk, and those on their way there, take."""
        with self._books:
            return sum(self._sizes.values())

    def fetch(self, ref: ArtifactRef) -> DiskArtifact:
        """Claim the artifact, from disk or from the store; a second caller waits for the first one's download.

        Raises:
            ArtifactCorrupt: The store's bytes are missing or not what the digests say; nothing is kept.
            InsufficientMemory: It does not fit on the disk beside what is claimed.
            StorageUnavailable: The store does not answer and there is no copy here.
        """
        with self._books:  # before anything is looked at, so that nobody else's newcomer pushes it out meanwhile
            self._claims[ref.digest] += 1
        try:
            with self._lock(ref.digest):
                manifest = self._read_manifest(ref.digest) or self._download(ref)
                os.utime(self._manifest_path(ref.digest))
        except BaseException:
            self.release(ref)
            raise
        return DiskArtifact(self._root / ref.digest, manifest, ref.digest)

    def release(self, ref: ArtifactRef) -> None:
        """Give a claim back; the artifact stays as long as there is room."""
        with self._books:
            self._claims[ref.digest] -= 1

    def recheck(self, ref: ArtifactRef) -> None:
        """Hash the copy again and forget it if it has rotted, so that the next fetch asks the store.

        Nobody waits for the hashing of a copy that turns out to be whole.
        """
        if not self._is_intact(ref.digest):
            with self._lock(ref.digest):  # nobody is writing it now
                if not self._is_intact(ref.digest):
                    with self._books:
                        self._remove(ref.digest)

    def _is_intact(self, digest: str) -> bool:
        manifest, folder = self._read_manifest(digest), self._root / digest
        return manifest is not None and all(_is_whole(folder / file.path, file.sha256) for file in manifest.files)

    def _download(self, ref: ArtifactRef) -> ArtifactManifest:
        shutil.rmtree(self._root / ref.digest, ignore_errors=True)
        try:
            self._make_room(ref.digest, _size(read_manifest(self._store, ref)))
            manifest = fetch_artifact(self._store, ref, self._root / ref.digest)
            self._write_manifest(ref.digest, manifest)
        except ObjectNotFound as error:
            raise ArtifactCorrupt(f"artifact {ref.digest} is not in the store") from error
        finally:
            with self._books:
                if not self._manifest_path(ref.digest).exists():
                    self._sizes.pop(ref.digest, None)
        return manifest

    def _make_room(self, digest: str, needed: int) -> None:
        """Set bytes aside for a newcomer."""
        with self._books:
            self._sizes.pop(digest, None)
            idle = sorted((held for held in self._sizes if not self._claims[held]), key=self._used_at)
            while sum(self._sizes.values()) + needed > self._limit:
                if not idle:
                    raise InsufficientMemory(
                        f"an artifact of {needed} bytes does not fit on the decoder's disk: {sum(self._sizes.values())}"
                        f" of {self._limit} are in use",
                        code="insufficient_disk",
                    )
                _log.info("artifact pushed off the disk", digest=idle[0])
                self._remove(idle.pop(0))
            self._sizes[digest] = needed

    def _take_stock(self) -> dict[str, int]:
        """Sizes of the artifacts that are whole; the rest of an earlier life is swept away."""
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

    def _lock(self, digest: str) -> threading.Lock:
        return self._locks.setdefault(digest, threading.Lock())

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


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:  # it may be pushed off the disk meanwhile
        return False
