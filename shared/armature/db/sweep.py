"""What the tables say about the object store: which of its objects somebody still needs."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.jobs import TERMINAL_STATES
from armature.db.models import Artifact, File, Job, Tenant


def tenant_ids(session: Session) -> list[str]:
    """Every tenant."""
    return list(session.scalars(select(Tenant.id)))


def referenced_digests(session: Session, tenant_id: str) -> set[str]:
    """The SHA-256 of every blob and manifest that a row of the tenant's refers to."""
    digests = set(session.scalars(select(File.sha256).where(File.tenant_id == tenant_id)))
    artifacts = select(Artifact.digest, Artifact.manifest).where(Artifact.tenant_id == tenant_id)
    for digest, manifest in session.execute(artifacts):
        digests.add(digest)
        digests.update(file["sha256"] for file in manifest["files"])
    unfinished = select(Job.inputs).where(Job.tenant_id == tenant_id, Job.state.not_in(TERMINAL_STATES))
    for inputs in session.scalars(unfinished):  # a file that was deleted while a job was being created
        digests.update(given["sha256"] for given in inputs.values() if "sha256" in given)
    return digests


def finished(session: Session, job_ids: Iterable[str]) -> list[Job]:
    """Those of the jobs that are over."""
    return list(session.scalars(select(Job).where(Job.id.in_(job_ids), Job.state.in_(TERMINAL_STATES))))
