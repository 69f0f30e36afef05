"""Rows of the job tables for the tests, and ways to look at them."""

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef, BlobRef, CheckpointMetadata, Producer
from armature.contracts.base import digest
from armature.contracts.jobs import JobState
from armature.db.jobs import Publication
from armature.db.models import Artifact, Job, JobEvent, Tenant

Sessions = sessionmaker[Session]


def add_tenant(sessions: Sessions, name: str = "acme") -> str:
    with sessions.begin() as session:
        tenant = Tenant(name=name)
        session.add(tenant)
        session.flush()
        return tenant.id


def add_job(sessions: Sessions, tenant_id: str, **columns: Any) -> str:
    values: dict[str, Any] = {"kind": "test.work", "queue": "cpu", "spec": {}, "inputs": {}, "max_attempts": 3}
    with sessions.begin() as session:
        job = Job(tenant_id=tenant_id, **(values | columns))
        session.add(job)
        session.flush()
        return job.id


def get_job(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        return session.get_one(Job, job_id)


def states(sessions: Sessions) -> list[JobState]:
    with sessions() as session:
        return list(session.scalars(select(Job.state).order_by(Job.id)))


def events(sessions: Sessions, job_id: str) -> list[JobEvent]:
    """The job's log; its numbers are checked to have no gap."""
    with sessions() as session:
        rows = list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)))
        assert [row.seq for row in rows] == list(range(1, session.get_one(Job, job_id).last_event_seq + 1))
        return rows


def starts(sessions: Sessions, job_id: str) -> int:
    return sum(event.message == "started" for event in events(sessions, job_id))


def artifacts(sessions: Sessions, job_id: str) -> list[Artifact]:
    with sessions() as session:
        return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id)))


def let_lease_run_out(sessions: Sessions, job_id: str) -> None:
    """What waiting would do."""
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=0))


def publication(tenant_id: str, name: str = "checkpoint", content: str = "weights") -> Publication:
    """A finished artifact, as far as the tables are concerned."""
    sha256 = digest(content)
    manifest = ArtifactManifest(
        kind="checkpoint",
        files=[BlobRef(path="model.safetensors", sha256=sha256, size=7), BlobRef(path="c.json", sha256=sha256, size=2)],
        parents=[],
        metadata=CheckpointMetadata(
            model_digest=sha256,
            tokenizer_digest=sha256,
            weights_digest=sha256,
            architecture="LlamaForCausalLM",
            parameters=1,
            dtype="float32",
            vocab_size=1,
            context_length=1,
            chat_template=False,
        ),
        producer=Producer(kind="test.work", spec={}, version="0"),
    )
    ref = ArtifactRef(digest=manifest.digest(), manifest_key=f"tenants/{tenant_id}/artifacts/{manifest.digest()}.json")
    return Publication(name, ref, manifest)
