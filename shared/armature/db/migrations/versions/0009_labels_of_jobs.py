"""The pairs of jobs' metadata as rows, by which lists find jobs under row security."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

PAIRS = {"postgresql": "jsonb_each_text(jobs.metadata)", "sqlite": "json_each(jobs.metadata)"}


def upgrade() -> None:
    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("value", sa.String(length=512), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_labels_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_job_labels_tenant_id"),
        sa.PrimaryKeyConstraint("job_id", "key", name="pk_job_labels"),
    )
    pairs = PAIRS[op.get_bind().dialect.name]
    op.execute(
        "INSERT INTO job_labels (job_id, key, tenant_id, value) "
        f"SELECT jobs.id, pair.key, jobs.tenant_id, pair.value FROM jobs, {pairs} AS pair"
    )
    columns = ["tenant_id", "key", "value", "job_id"]
    op.create_index("ix_job_labels_tenant_id_key_value_job_id", "job_labels", columns)


def downgrade() -> None:
    op.drop_table("job_labels")
