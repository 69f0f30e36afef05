"""Artifacts expire, are found by what they were made from, and base models have aliases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("expires_at", sa.Double(), nullable=True))
    parents = op.create_table(
        "artifact_parents",
        sa.Column("artifact_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.id"], name="fk_artifact_parents_artifact_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("artifact_id", "role", name="pk_artifact_parents"),
    )
    op.create_index("ix_artifact_parents_digest", "artifact_parents", ["digest"])
    artifacts = sa.table("artifacts", sa.column("id", sa.String), sa.column("manifest", JSON))
    connection = op.get_bind()
    for id, manifest in connection.execute(sa.select(artifacts.c.id, artifacts.c.manifest)).all():
        for parent in manifest["parents"]:
            connection.execute(sa.insert(parents), {"artifact_id": id, **parent})
    op.create_table(
        "base_model_aliases",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("base_model_id", sa.String(length=40), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_base_model_aliases_tenant_id"),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_models.id"], name="fk_base_model_aliases_base_model_id"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "alias", name="pk_base_model_aliases"),
    )
    op.create_index("ix_base_model_aliases_base_model_id", "base_model_aliases", ["base_model_id"])


def downgrade() -> None:
    op.drop_table("base_model_aliases")
    op.drop_table("artifact_parents")
    op.drop_column("artifacts", "expires_at")
