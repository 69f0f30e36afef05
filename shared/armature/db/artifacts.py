"""Deletion of artifacts: what still refers to one, and which have expired."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from armature.contracts.profiles import ARTIFACT_PARTS
from armature.contracts.specs import parse_inputs
from armature.contracts.specs.base import ArtifactInput
from armature.db.base import db_now
from armature.db.models import Artifact, BaseModel, Job, Profile, ProfileVersion
from armature.db.transitions import is_active

GRACE_SECONDS = 3600.0
"""Delay between an artifact's expiry (it is no longer found) and its deletion: requests that found it have ended."""


def is_expired(grace: float = 0.0) -> ColumnElement[bool]:
    """Return the condition that an artifact expired at least ``grace`` seconds ago."""
    return and_(Artifact.expires_at.is_not(None), Artifact.expires_at <= db_now() - grace)


def users_of(session: Session, artifact: Artifact) -> Iterator[str]:
    """Describe what refers to ``artifact``: base models, profile versions, jobs that are not over.

    All tenants are searched, since an artifact may be shared; other tenants' users stay unnamed.
    """
    for tenant_id, user in _users(session, artifact):
        yield user if tenant_id == artifact.tenant_id else "another tenant's work"


def _users(session: Session, artifact: Artifact) -> Iterator[tuple[str, str]]:
    models = select(BaseModel.tenant_id, BaseModel.name).where(BaseModel.artifact_id == artifact.id)
    for tenant_id, name in session.execute(models):
        yield tenant_id, f"the base model {name}"
    names = [ProfileVersion.manifest[part]["digest"].as_string() == artifact.digest for part in ARTIFACT_PARTS]
    versions = select(Profile.tenant_id, Profile.name).join(ProfileVersion).where(or_(*names)).distinct()
    for tenant_id, name in session.execute(versions):
        yield tenant_id, f"a version of the profile {name}"
    active = select(Job.tenant_id, Job.id, Job.inputs).where(is_active())
    for tenant_id, job_id, inputs in session.execute(active):
        resolved = parse_inputs(inputs).values()
        if any(isinstance(value, ArtifactInput) and value.ref.digest == artifact.digest for value in resolved):
            yield tenant_id, f"job {job_id}"


def delete_expired(session: Session, tenant_id: str) -> list[str]:
    """Delete the rows of a tenant's expired artifacts that nothing refers to, and return their ids.

    Their objects become orphans for the sweep. An expired artifact that is still referred to stays, unlisted.
    """
    expired = session.scalars(select(Artifact).where(Artifact.tenant_id == tenant_id, is_expired(GRACE_SECONDS))).all()
    gone = [artifact.id for artifact in expired if next(users_of(session, artifact), None) is None]
    session.execute(delete(Artifact).where(Artifact.id.in_(gone)))
    return gone
