"""Artifacts in the store: content-addressed blobs, and a manifest that lists them.

Blobs are written first and the manifest last, so a manifest in the store is complete. Content addressing makes every
step idempotent: a rerun after a crash finds its work done, and the sweep deletes orphans later.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from armature.contracts.artifacts import ArtifactManifest, ArtifactMetadata, ArtifactRef, BlobRef, Parent, Producer
from armature.contracts.base import canonical_json
from armature.errors import ArtifactCorrupt, InvalidRequest
from armature.storage.base import ArtifactStore, ObjectNotFound
from armature.storage.files import make_folder

ORPHAN_SECONDS = 24 * 3600.0
"""Age below which an object is never swept: a running job may be about to refer to it."""

_REUSE_SECONDS = ORPHAN_SECONDS / 2
"""Age above which a blob is uploaded again, not reused: a sweep could delete it before the manifest is written."""


@dataclass(frozen=True)
class Blob:
    """A blob in the store: its digest and size."""

    sha256: str
    size: int


def blob_key(tenant_id: str, sha256: str) -> str:
    """Return the key of a tenant's blob."""
    return f"tenants/{tenant_id}/blobs/{sha256}"


def manifest_key(tenant_id: str, digest: str) -> str:
    """Return the key of a tenant's manifest."""
    return f"tenants/{tenant_id}/artifacts/{digest}.json"


def put_blob(store: ArtifactStore, tenant_id: str, path: Path) -> Blob:
    """Upload a file under its digest, unless the store has a recent copy (:data:`_REUSE_SECONDS`).

    Raises:
        StorageUnavailable: The store does not answer.
    """
    blob = Blob(file_sha256(path), path.stat().st_size)
    key = blob_key(tenant_id, blob.sha256)
    present = store.head(key)
    if present is None or present.size != blob.size or present.modified_at < time.time() - _REUSE_SECONDS:
        store.put_file(key, path)
    return blob


def publish_folder(
    store: ArtifactStore,
    tenant_id: str,
    folder: Path,
    *,
    metadata: ArtifactMetadata,
    parents: list[Parent],
    producer: Producer,
) -> tuple[ArtifactManifest, ArtifactRef]:
    """Upload ``folder`` as an artifact. Idempotent: the same content has the same digest.

    Raises:
        InvalidRequest: The folder is empty, or contains something that is not a regular file.
        ArtifactCorrupt: The store has other bytes under this manifest's digest.
    """
    files = []
    for path in regular_files(folder):
        blob = put_blob(store, tenant_id, path)
        files.append(BlobRef(path=path.relative_to(folder).as_posix(), sha256=blob.sha256, size=blob.size))
    manifest = ArtifactManifest(kind=metadata.type, files=files, parents=parents, metadata=metadata, producer=producer)
    ref = ArtifactRef(digest=manifest.digest(), manifest_key=manifest_key(tenant_id, manifest.digest()))
    data = canonical_json(manifest.model_dump(mode="json"))
    if not store.create(ref.manifest_key, data):
        if store.get_bytes(ref.manifest_key) != data:
            raise ArtifactCorrupt(f"the manifest {ref.digest} in the store does not match its digest")
        store.put_bytes(ref.manifest_key, data)  # the same bytes with a new age: see ORPHAN_SECONDS
    return manifest, ref


def read_manifest(store: ArtifactStore, ref: ArtifactRef) -> ArtifactManifest:
    """Read a manifest and check it against its digest.

    Raises:
        ObjectNotFound: The store has no such manifest.
        ArtifactCorrupt: Its bytes do not hash to the digest.
    """
    data = store.get_bytes(ref.manifest_key)
    if hashlib.sha256(data).hexdigest() != ref.digest:
        raise ArtifactCorrupt(f"the manifest of artifact {ref.digest} does not hash to its digest")
    return ArtifactManifest.model_validate_json(data)


def fetch_artifact(store: ArtifactStore, ref: ArtifactRef, folder: Path) -> ArtifactManifest:
    """Download an artifact into the new ``folder``, which appears complete and verified or not at all.

    Raises:
        ObjectNotFound: The store has no such manifest.
        ArtifactCorrupt: The manifest or a file is damaged or missing.
        FileExistsError: The folder exists.
    """
    manifest = read_manifest(store, ref)
    with _created_whole(folder) as draft:
        for file in manifest.files:
            fetch_object(store, blob_key(_tenant(ref), file.sha256), draft / file.path, file.sha256)
    return manifest


def fetch_object(store: ArtifactStore, key: str, path: Path, sha256: str) -> None:
    """Download the object ``key`` into the file ``path`` and check its digest.

    Raises:
        ArtifactCorrupt: The object is missing or its bytes do not hash to ``sha256``.
    """
    try:
        store.get_file(key, path)
    except ObjectNotFound as error:
        raise ArtifactCorrupt(f"the object of {path.name} is missing") from error
    if file_sha256(path) != sha256:
        raise ArtifactCorrupt(f"the object of {path.name} does not hash to its digest")


def sweep_orphans(
    store: ArtifactStore, tenant_id: str, referenced: Set[str], older_than_seconds: float = ORPHAN_SECONDS
) -> int:
    """Delete a tenant's orphans: old blobs and manifests that nothing refers to.

    Args:
        store: The store to sweep.
        tenant_id: The owner of the objects.
        referenced: The digests in use, of blobs (files, checkpoints, the files of manifests) and of manifests, read
            from the database before the call.
        older_than_seconds: The least age. It compares the store's clock with this machine's, so leave hours.

    Returns:
        The number of deleted objects.
    """
    cutoff = time.time() - older_than_seconds
    swept = 0
    for prefix in (f"tenants/{tenant_id}/blobs/", f"tenants/{tenant_id}/artifacts/"):
        for found in store.list(prefix):
            if Path(found.key).stem in referenced or found.modified_at >= cutoff:
                continue
            current = store.head(found.key)  # a job may have written the object again since the listing
            if current is not None and current.modified_at < cutoff:
                store.delete(found.key)
                swept += 1
    return swept


def _tenant(ref: ArtifactRef) -> str:
    """Return the artifact's owner, whose prefix holds the blobs too."""
    owner = ref.manifest_key.split("/")[1:2]
    if not owner or ref.manifest_key != manifest_key(owner[0], ref.digest):
        raise ArtifactCorrupt(f"{ref.manifest_key} is not the key of artifact {ref.digest}")
    return owner[0]


def regular_files(folder: Path) -> list[Path]:
    """List the files below ``folder``, sorted.

    Raises:
        InvalidRequest: There is no file, or something that is not a regular file.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise InvalidRequest(f"{path.relative_to(folder)} is not a regular file")
    if not paths:
        raise InvalidRequest("an artifact must have at least one file")
    return paths


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _created_whole(folder: Path) -> Iterator[Path]:
    """Yield a draft folder, renamed to ``folder`` if the block succeeds and removed otherwise."""
    if folder.exists():
        raise FileExistsError(folder)
    make_folder(folder.parent)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name[:32]}.", dir=folder.parent))
    try:
        yield draft
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
