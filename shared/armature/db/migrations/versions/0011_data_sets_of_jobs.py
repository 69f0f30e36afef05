"""Data sets that jobs make: the job is known by an indexed column, empty for data sets made from uploads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets") as datasets:
        datasets.add_column(sa.Column("job_id", sa.String(length=40), nullable=True))
        datasets.create_foreign_key("fk_datasets_job_id", "jobs", ["job_id"], ["id"])
    op.create_index("ix_datasets_job_id", "datasets", ["job_id"])


def downgrade() -> None:
    op.drop_index("ix_datasets_job_id", "datasets")
    with op.batch_alter_table("datasets") as datasets:
        datasets.drop_constraint("fk_datasets_job_id", type_="foreignkey")
        datasets.drop_column("job_id")
