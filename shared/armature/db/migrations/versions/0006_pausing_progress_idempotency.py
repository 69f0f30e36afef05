"""Jobs that pause, whose progress is known as a whole, and idempotency keys for every kind of request.

Keys of jobs that were submitted before are forgotten; a request under way during the upgrade may be made twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
BEFORE = "state IN ('queued','running','succeeded','failed','cancelled')"
AFTER = "state IN ('queued', 'running', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled')"
ACTIVE = "state IN ('queued','running')"
INDEXES: dict[str, tuple[list[str], str | None]] = {
    "ix_jobs_tenant_id_state_created_at_id": (["tenant_id", "state", "created_at", "id"], None),
    "ix_jobs_tenant_id_kind_created_at_id": (["tenant_id", "kind", "created_at", "id"], None),
    "ix_jobs_leased": (["id"], "state IN ('running', 'cancelling')"),
    "ix_jobs_dispatch": (["dispatched_at", "id"], "state = 'queued'"),
    "ix_jobs_queue": (["tenant_id", "queue", "created_at", "id"], "state = 'queued'"),
    "ix_jobs_checkpoint": (["tenant_id"], "checkpoint IS NOT NULL"),
}


def upgrade() -> None:
    op.drop_index("ix_jobs_active", "jobs")
    with _altered_jobs(AFTER) as jobs:
        jobs.add_column(sa.Column("retried_from", sa.String(length=40), nullable=True))
        jobs.add_column(sa.Column("pause_requested", sa.Boolean(), nullable=False, server_default=sa.false()))
        jobs.add_column(sa.Column("percent", sa.Double(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("eta_seconds", sa.Double(), nullable=True))
        jobs.add_column(sa.Column("progress_at", sa.Double(), nullable=True))
    op.execute("UPDATE jobs SET percent = 100 WHERE state = 'succeeded'")
    op.execute("UPDATE jobs SET state = 'cancelling' WHERE state = 'running' AND cancel_requested_at IS NOT NULL")
    with _altered_jobs(AFTER) as jobs:
        jobs.alter_column("pause_requested", server_default=None)
        jobs.alter_column("percent", server_default=None)
        jobs.drop_constraint("uq_jobs_tenant_id_idempotency_key", type_="unique")
        for column in ("idempotency_key", "request_digest", "cancel_requested_at"):
            jobs.drop_column(column)
    for name, (columns, where) in INDEXES.items():
        _create_index(name, columns, where)
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("answer", JSON, nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_idempotency_keys_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    for name in INDEXES:
        op.drop_index(name, "jobs")
    with _altered_jobs(AFTER) as jobs:
        jobs.add_column(sa.Column("idempotency_key", sa.String(length=255), nullable=True))
        jobs.add_column(sa.Column("request_digest", sa.String(length=64), nullable=True))
        jobs.add_column(sa.Column("cancel_requested_at", sa.Double(), nullable=True))
        jobs.create_unique_constraint("uq_jobs_tenant_id_idempotency_key", ["tenant_id", "idempotency_key"])
    # The states that are gone become what the older code would have made of them.
    op.execute("UPDATE jobs SET state = 'running', cancel_requested_at = created_at WHERE state = 'cancelling'")
    op.execute("UPDATE jobs SET state = 'queued' WHERE state = 'paused'")
    with _altered_jobs(BEFORE) as jobs:
        for column in ("retried_from", "pause_requested", "percent", "eta_seconds", "progress_at"):
            jobs.drop_column(column)
    _create_index("ix_jobs_active", ["state", "lease_until", "dispatched_at"], ACTIVE)


@contextmanager
def _altered_jobs(states: str) -> Iterator[BatchOperations]:
    """The jobs table, with these states allowed from then on."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_state"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_state"), states)
        yield jobs


def _create_index(name: str, columns: list[str], where: str | None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, "jobs", columns, sqlite_where=condition, postgresql_where=condition)
