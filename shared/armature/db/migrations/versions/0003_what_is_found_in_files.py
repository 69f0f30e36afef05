"""What is found in files of rows, and what data sets judge."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("files", sa.Column("scan", JSON, nullable=True))
    op.add_column("datasets", sa.Column("attribute", sa.String(length=64), nullable=True))
    op.create_index("ix_datasets_file_id", "datasets", ["file_id"])


def downgrade() -> None:
    op.drop_index("ix_datasets_file_id", "datasets")
    op.drop_column("datasets", "attribute")
    op.drop_column("files", "scan")
