"""Indexes for a tenant's stored bytes, which limits are checked against, and for files by digest, which lineage names."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_artifacts_stored", "artifacts", ["tenant_id"], postgresql_include=["bytes", "shared"])
    op.create_index("ix_files_tenant_id_sha256", "files", ["tenant_id", "sha256"])


def downgrade() -> None:
    op.drop_index("ix_files_tenant_id_sha256", "files")
    op.drop_index("ix_artifacts_stored", "artifacts")
