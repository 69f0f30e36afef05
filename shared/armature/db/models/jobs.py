"""Tables of jobs, their labels and their logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from sqlalchemy import CheckConstraint, Connection, Double, ForeignKey, Index, String, Text, event, insert
from sqlalchemy.orm import Mapped, mapped_column

from armature.contracts.base import new_id
from armature.contracts.jobs import ACTIVE_STATES, JobState
from armature.db.base import Base, Id, Json, db_now, partial_index

LEASED_STATES: tuple[JobState, ...] = ("running", "cancelling")
"""The states in which a worker holds the job."""


def _one_of(states: Iterable[str]) -> str:
    return f"state IN ({', '.join(map(repr, states))})"


class Job(Base):
    """A job. The row is the outbox: ``dispatched_at`` NULL means that no message was sent yet.

    ``fence`` is the fencing token: it grows with every claim and guards heartbeats, checkpoints and the publish, so a
    worker that lost its lease can change nothing. ``not_before`` is the end of a requeued job's back-off.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of(get_args(JobState)), name="state"),
        Index(None, "tenant_id", "created_at", "id"),
        Index(None, "tenant_id", "state", "created_at", "id"),
        Index(None, "tenant_id", "kind", "created_at", "id"),
        partial_index("ix_jobs_active", "state", where=_one_of(ACTIVE_STATES)),
        partial_index("ix_jobs_finished", "finished_at", where="finished_at IS NOT NULL"),
        # Without lease_until, so that a heartbeat updates no index.
        partial_index("ix_jobs_leased", "tenant_id", "id", where=_one_of(LEASED_STATES)),
        partial_index("ix_jobs_dispatch", "dispatched_at", "id", where="state = 'queued'"),
        partial_index("ix_jobs_queue", "tenant_id", "queue", "created_at", "id", where="state = 'queued'"),
        partial_index("ix_jobs_checkpoint", "tenant_id", where="checkpoint IS NOT NULL"),
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
    """A key-value pair of a job's metadata, as an indexed row that lists can filter by.

    Under row security PostgreSQL can not use an index on the contents of a JSON column.
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
