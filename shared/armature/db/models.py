"""The control plane's tables. Every row that belongs to a tenant carries ``tenant_id``; every query filters by it.

Times are seconds since the epoch by the database's clock (:class:`armature.db.base.db_now`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Connection,
    Double,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    event,
    insert,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from armature.contracts.base import new_id
from armature.contracts.jobs import ACTIVE_STATES, JobState
from armature.db.base import Base, Id, Json, db_now

LEASED_STATES: tuple[JobState, ...] = ("running", "cancelling")
"""A worker holds the job."""


def _one_of(states: Iterable[str]) -> str:
    return f"state IN ({', '.join(map(repr, states))})"


def _partial_index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Installation(Base):
    """One row: who this installation is, and the revision of what it serves."""

    __tablename__ = "installation"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    serving_revision: Mapped[int] = mapped_column(default=0)


class Tenant(Base):
    """A team. ``served_at`` is when a job of its was last claimed: of equals, who waited longest comes first."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("tenant"))
    name: Mapped[str] = mapped_column(String(64), unique=True)
    limits: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    served_at: Mapped[float] = mapped_column(Double, default=0.0)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ApiKey(Base):
    """A key; the secret itself is never stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(Json)
    expires_at: Mapped[float | None] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)
    last_used_at: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class AuditEntry(Base):
    """A change, by whom. ``hash`` covers the entry and the hash of the one before; ``seq`` counts per tenant.

    Triggers refuse to change or delete a row.
    """

    __tablename__ = "audit_entries"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    key_id: Mapped[str | None] = mapped_column(Id)
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(255))
    before: Mapped[str | None] = mapped_column(String(64))
    after: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """The end of a tenant's audit log. Its row is what two changes at the same time wait for each other on."""

    __tablename__ = "audit_heads"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    hash: Mapped[str] = mapped_column(String(64), default="")


class File(Base):
    """An uploaded file; its bytes are a blob of the tenant's. ``scan`` is what was found in a file of rows.

    ``harmful``: only for keys with the scopes for it, and for jobs that turn it into safety.
    """

    __tablename__ = "files"
    __table_args__ = (Index(None, "tenant_id", "created_at", "id"), Index(None, "tenant_id", "sha256"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("file"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    scan: Mapped[dict[str, Any] | None] = mapped_column(Json)
    harmful: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Dataset(Base):
    """A file of good rows. ``attribute`` is what those are about that do not say it."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("dataset"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(32))
    attribute: Mapped[str | None] = mapped_column(String(64))
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    rows: Mapped[int]
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Job(Base):
    """A job. The row is the outbox: ``dispatched_at`` NULL means that no message was sent for it yet.

    ``fence`` grows with every claim; heartbeats, checkpoints and the publish are guarded by it, so a worker that lost
    its lease can change nothing. ``not_before`` is the back-off of a job that is queued again.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of(get_args(JobState)), name="state"),
        Index(None, "tenant_id", "created_at", "id"),
        Index(None, "tenant_id", "state", "created_at", "id"),
        Index(None, "tenant_id", "kind", "created_at", "id"),
        _partial_index("ix_jobs_active", "state", where=_one_of(ACTIVE_STATES)),
        _partial_index("ix_jobs_finished", "finished_at", where="finished_at IS NOT NULL"),
        # Without lease_until, so that a heartbeat writes to no index.
        _partial_index("ix_jobs_leased", "tenant_id", "id", where=_one_of(LEASED_STATES)),
        _partial_index("ix_jobs_dispatch", "dispatched_at", "id", where="state = 'queued'"),
        _partial_index("ix_jobs_queue", "tenant_id", "queue", "created_at", "id", where="state = 'queued'"),
        _partial_index("ix_jobs_checkpoint", "tenant_id", where="checkpoint IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("job"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    kind: Mapped[str] = mapped_column(String(64))
    queue: Mapped[str] = mapped_column(String(32))
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    inputs: Mapped[dict[str, Any]] = mapped_column(Json)
    max_attempts: Mapped[int]
    shared: Mapped[bool] = mapped_column(default=False)
    job_metadata: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    retried_from: Mapped[str | None] = mapped_column(Id)
    request_id: Mapped[str | None] = mapped_column(String(64))

    state: Mapped[JobState] = mapped_column(String(16), default="queued")
    pause_requested: Mapped[bool] = mapped_column(default=False)
    dispatched_at: Mapped[float | None] = mapped_column(Double)
    not_before: Mapped[float | None] = mapped_column(Double)
    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[float | None] = mapped_column(Double)
    phase: Mapped[str] = mapped_column(String(32), default="queued")
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    percent: Mapped[float] = mapped_column(Double, default=0.0)
    eta_seconds: Mapped[float | None] = mapped_column(Double)
    progress_at: Mapped[float | None] = mapped_column(Double)
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    last_event_seq: Mapped[int] = mapped_column(default=0)
    base_model_id: Mapped[str | None] = mapped_column(Id)
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class JobLabel(Base):
    """A pair of a job's metadata, where lists can look it up.

    A row of its own, since row security keeps PostgreSQL from asking an index what a JSON column contains.
    """

    __tablename__ = "job_labels"
    __table_args__ = (Index(None, "tenant_id", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    value: Mapped[str] = mapped_column(String(512))


@event.listens_for(Job, "after_insert")
def _label(_mapper: object, connection: Connection, job: Job) -> None:
    labels = [
        {"job_id": job.id, "key": key, "tenant_id": job.tenant_id, "value": value}
        for key, value in job.job_metadata.items()
    ]
    if labels:
        connection.execute(insert(JobLabel), labels)


class JobEvent(Base):
    """A line of a job's log; ``seq`` counts 1, 2, 3, ... within the job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class IdempotencyKey(Base):
    """A request that came with an Idempotency-Key, and its answer. ``id`` hashes key, method and path."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_digest: Mapped[str] = mapped_column(String(64))
    answer: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now(), index=True)


class Artifact(Base):
    """A published artifact. ``(job_id, name)`` is unique: a job publishes each output once.

    Once ``expires_at`` has passed nobody finds it any more; the sweep deletes it when nothing refers to it.
    """

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("job_id", "name"),
        Index(None, "tenant_id", "created_at", "id"),
        Index(None, "tenant_id", "kind", "created_at", "id"),
        # The sum of a tenant's bytes is read from the index alone; row security looks at the other column.
        Index("ix_artifacts_stored", "tenant_id", postgresql_include=["bytes", "shared"]),
        _partial_index("ix_artifacts_shared", "created_at", "id", where="shared"),
        _partial_index("ix_artifacts_expiring", "tenant_id", "expires_at", where="expires_at IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("artifact"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    manifest_key: Mapped[str] = mapped_column(String(512))
    manifest: Mapped[dict[str, Any]] = mapped_column(Json)
    bytes: Mapped[int] = mapped_column(BigInteger)
    shared: Mapped[bool] = mapped_column(default=False)
    expires_at: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ArtifactParent(Base):
    """An input that an artifact was made from: its manifest's parents, where descendants can be looked up."""

    __tablename__ = "artifact_parents"

    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), index=True)


class BaseModel(Base):
    """A name for a checkpoint artifact."""

    __tablename__ = "base_models"
    __table_args__ = (UniqueConstraint("tenant_id", "name"), Index(None, "tenant_id", "created_at", "id"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("base_model"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"))
    shared: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class BaseModelAlias(Base):
    """A tenant's movable name for a base model."""

    __tablename__ = "base_model_aliases"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"), index=True)
    updated_at: Mapped[float] = mapped_column(Double, default=db_now())


class Profile(Base):
    """A named line of profile versions."""

    __tablename__ = "profiles"
    __table_args__ = (UniqueConstraint("tenant_id", "name"), Index(None, "tenant_id", "created_at", "id"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("profile"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ProfileVersion(Base):
    """An immutable combination; ``manifest`` is what the decoder is told."""

    __tablename__ = "profile_versions"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    manifest: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ProfileAlias(Base):
    """A movable pointer to a version; going live is moving it."""

    __tablename__ = "profile_aliases"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    canary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    updated_at: Mapped[float] = mapped_column(Double, default=db_now(), onupdate=db_now())


class AliasMove(Base):
    """An entry of an alias' history; ``seq`` counts 1, 2, 3, ... within the alias."""

    __tablename__ = "alias_moves"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    canary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    rollback: Mapped[bool]
    key_id: Mapped[str] = mapped_column(Id)
    reports: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class AliasGate(Base):
    """What evaluations must show before the alias moves; it may be there before the alias is."""

    __tablename__ = "alias_gates"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    gate: Mapped[dict[str, Any]] = mapped_column(Json)
