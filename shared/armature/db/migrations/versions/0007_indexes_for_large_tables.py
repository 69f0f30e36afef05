"""Indexes by which no request, claim or scrape looks at more rows of a large table than it answers for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LEASED = "state IN ('running', 'cancelling')"
ACTIVE = "state IN ('queued', 'running', 'paused', 'cancelling')"
INDEXES: dict[str, tuple[str, list[str], str | None]] = {
    "ix_jobs_leased": ("jobs", ["tenant_id", "id"], LEASED),
    "ix_jobs_active": ("jobs", ["state"], ACTIVE),
    "ix_jobs_finished": ("jobs", ["finished_at"], "finished_at IS NOT NULL"),
    "ix_artifacts_tenant_id_kind_created_at_id": ("artifacts", ["tenant_id", "kind", "created_at", "id"], None),
    "ix_artifacts_shared": ("artifacts", ["created_at", "id"], "shared"),
    "ix_artifacts_expiring": ("artifacts", ["tenant_id", "expires_at"], "expires_at IS NOT NULL"),
}


def upgrade() -> None:
    op.drop_index("ix_jobs_leased", "jobs")
    for name in INDEXES:
        _create_index(name, *INDEXES[name])


def downgrade() -> None:
    for name, (table, _, _) in INDEXES.items():
        op.drop_index(name, table)
    _create_index("ix_jobs_leased", "jobs", ["id"], LEASED)


def _create_index(name: str, table: str, columns: list[str], where: str | None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
