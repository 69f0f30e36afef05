"""Artifacts on the decoder's disk: by digest, verified when they arrive, fetched once however many ask."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef
from armature.errors import ArtifactCorrupt
from armature.storage.artifacts import fetch_artifact, file_sha256
from armature.storage.base import ArtifactStore, ObjectNotFound


@dataclass(frozen=True)
class DiskArtifact:
    """An artifact's folder and what its manifest says."""

    folder: Path
    manifest: ArtifactManifest
    digest: str


class DiskCache:
    """``<root>/<digest>/`` holds an artifact's files, ``<root>/<digest>.json`` its manifest, written last.

    A folder without its manifest file is not there: it is fetched again.
    """

    def __init__(self, store: ArtifactStore, root: Path) -> None:
        self._store = store
        self._root = root
        self._locks: dict[str, threading.Lock] = {}
        root.mkdir(parents=True, exist_ok=True)

    def fetch(self, ref: ArtifactRef) -> DiskArtifact:
        """The artifact, from disk or from the store; a second caller waits for the first one's download.

        Raises:
            ArtifactCorrupt: The store's bytes are missing or not what the digests say; nothing is kept.
            StorageUnavailable: The store does not answer and there is no copy here.
        """
        with self._lock(ref):
            if (manifest := self._read_manifest(ref)) is None:
                folder = self._root / ref.digest
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    manifest = fetch_artifact(self._store, ref, folder)
                except ObjectNotFound as error:
                    raise ArtifactCorrupt(f"artifact {ref.digest} is not in the store") from error
                self._write_manifest(ref, manifest)
        return DiskArtifact(self._root / ref.digest, manifest, ref.digest)

    def recheck(self, ref: ArtifactRef) -> None:
        """Hash the copy again and forget it if it has rotted, so that the next fetch asks the store."""
        with self._lock(ref):
            manifest, folder = self._read_manifest(ref), self._root / ref.digest
            if manifest is None or not all(_is_whole(folder / file.path, file.sha256) for file in manifest.files):
                self._manifest_path(ref).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def _lock(self, ref: ArtifactRef) -> threading.Lock:
        return self._locks.setdefault(ref.digest, threading.Lock())

    def _manifest_path(self, ref: ArtifactRef) -> Path:
        return self._root / f"{ref.digest}.json"

    def _read_manifest(self, ref: ArtifactRef) -> ArtifactManifest | None:
        try:
            manifest = ArtifactManifest.model_validate_json(self._manifest_path(ref).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return manifest if manifest.digest() == ref.digest and (self._root / ref.digest).is_dir() else None

    def _write_manifest(self, ref: ArtifactRef, manifest: ArtifactManifest) -> None:
        partial = self._manifest_path(ref).with_suffix(".partial")
        partial.write_text(manifest.model_dump_json())
        partial.replace(self._manifest_path(ref))


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
