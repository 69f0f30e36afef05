"""Queries of the sweep: which objects are still referred to, and which rows have outlived their use."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from armature.contracts.jobs import TERMINAL_STATES
from armature.db.base import db_now
from armature.db.models import Artifact, File, IdempotencyKey, Job, Tenant
from armature.db.transitions import is_active

IDEMPOTENCY_SECONDS = 48 * 3600.0
"""How long a repeated request is recognized by its key."""


def tenant_ids(session: Session) -> list[str]:
    """List the ids of all tenants."""
    return list(session.scalars(select(Tenant.id)))


def referenced_digests(session: Session, tenant_id: str) -> set[str]:
    """Collect the SHA-256 of every blob and manifest that a tenant's rows refer to."""
    digests = set(session.scalars(select(File.sha256).where(File.tenant_id == tenant_id)))
    artifacts = select(Artifact.digest, Artifact.manifest).where(Artifact.tenant_id == tenant_id)
    for digest, manifest in session.execute(artifacts):
        digests.add(digest)
        digests.update(file["sha256"] for file in manifest["files"])
    unfinished = select(Job.inputs).where(Job.tenant_id == tenant_id, is_active())
    for inputs in session.scalars(unfinished):  # a file can be deleted while a job that reads it is being created
        digests.update(source["sha256"] for source in inputs.values() if "sha256" in source)
    return digests


def forget_checkpoints(session: Session, keep_seconds: float) -> None:
    """Clear the checkpoints of jobs that ended more than ``keep_seconds`` ago: too late for a retry."""
    old = (Job.checkpoint.is_not(None), Job.state.in_(TERMINAL_STATES), Job.finished_at < db_now() - keep_seconds)
    session.execute(update(Job).where(*old).values(checkpoint=None).execution_options(synchronize_session=False))


def done_with_checkpoints(session: Session, tenant_id: str, job_ids: Iterable[str]) -> list[Job]:
    """Return the tenant's finished jobs among ``job_ids`` whose checkpoint objects no row refers to."""
    kept = select(Job.checkpoint["prefix"].as_string()).where(Job.tenant_id == tenant_id, Job.checkpoint.is_not(None))
    prefixes = list(session.scalars(kept))
    over = session.scalars(select(Job).where(Job.id.in_(job_ids), Job.state.in_(TERMINAL_STATES)))
    return [job for job in over if not any(f"/{job.id}/" in prefix for prefix in prefixes)]


def forget_idempotency_keys(session: Session) -> None:
    """Delete idempotency keys older than :data:`IDEMPOTENCY_SECONDS`."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < db_now() - IDEMPOTENCY_SECONDS))
