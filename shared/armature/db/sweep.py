"""What the tables say about the object store: which objects are needed, and which jobs left something behind."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from armature.contracts.jobs import TERMINAL_STATES
from armature.db.models import Artifact, File, Job, Tenant


def finished_with_checkpoint(session: Session, limit: int = 100) -> list[Job]:
    """Jobs that are over and whose saved position is still noted."""
    over = select(Job).where(Job.state.in_(TERMINAL_STATES), Job.checkpoint.is_not(None))
    return list(session.scalars(over.limit(limit)))


def forget_checkpoint(session: Session, job_id: str) -> None:
    """Note that a finished job's saved positions are deleted."""
    over = update(Job).where(Job.id == job_id, Job.state.in_(TERMINAL_STATES)).values(checkpoint=None)
    session.execute(over.execution_options(synchronize_session=False))


def referenced_digests(session: Session) -> Iterator[tuple[str, set[str]]]:
    """Per tenant the SHA-256 of every blob and manifest that a row refers to."""
    for tenant_id in session.scalars(select(Tenant.id)):
        digests = set(session.scalars(select(File.sha256).where(File.tenant_id == tenant_id)))
        manifests = select(Artifact.digest, Artifact.manifest).where(Artifact.tenant_id == tenant_id)
        for digest, manifest in session.execute(manifests):
            digests.add(digest)
            digests.update(file["sha256"] for file in manifest["files"])
        yield tenant_id, digests
