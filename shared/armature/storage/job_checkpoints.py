"""Checkpoints of long jobs in the store: a folder per checkpoint, below the job's prefix.

Each checkpoint has its own prefix, so an attempt that lost its lease never overwrites or deletes its successor's.
"""

from __future__ import annotations

import time
from pathlib import Path

from armature.contracts.artifacts import BlobRef
from armature.contracts.jobs import JobCheckpoint
from armature.storage.artifacts import fetch_object, file_sha256, regular_files
from armature.storage.base import ArtifactStore


def checkpoints_prefix(tenant_id: str, job_id: str) -> str:
    """Return the prefix of a job's checkpoints."""
    return f"{_jobs_prefix(tenant_id)}{job_id}/checkpoints/"


def upload_checkpoint(store: ArtifactStore, prefix: str, step: int, folder: Path) -> JobCheckpoint:
    """Upload a folder as a checkpoint, which takes effect once the job's row points at it."""
    files = []
    for path in regular_files(folder):
        file = BlobRef(path=path.relative_to(folder).as_posix(), sha256=file_sha256(path), size=path.stat().st_size)
        store.put_file(prefix + file.path, path)
        files.append(file)
    return JobCheckpoint(step=step, prefix=prefix, files=files, saved_at=int(time.time()))


def download_checkpoint(store: ArtifactStore, checkpoint: JobCheckpoint, folder: Path) -> None:
    """Download a checkpoint into ``folder``, verifying each file.

    Raises:
        ArtifactCorrupt: A file is missing or damaged.
    """
    for file in checkpoint.files:
        fetch_object(store, checkpoint.prefix + file.path, folder / file.path, file.sha256)


def jobs_with_checkpoints(store: ArtifactStore, tenant_id: str) -> set[str]:
    """Return the ids of the tenant's jobs that have checkpoints in the store."""
    prefix = _jobs_prefix(tenant_id)
    return {found.key.removeprefix(prefix).partition("/")[0] for found in store.list(prefix)}


def delete_checkpoints(store: ArtifactStore, prefix: str) -> None:
    """Delete the objects below ``prefix``: one checkpoint, or all of a job (:func:`checkpoints_prefix`)."""
    for found in list(store.list(prefix)):
        store.delete(found.key)


def _jobs_prefix(tenant_id: str) -> str:
    return f"tenants/{tenant_id}/jobs/"
