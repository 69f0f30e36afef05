"""Gates, canaries and history of aliases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("profile_aliases", sa.Column("canary", JSON, nullable=True))
    op.create_table(
        "alias_moves",
        sa.Column("profile_id", sa.String(length=40), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("canary", JSON, nullable=True),
        sa.Column("rollback", sa.Boolean(), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("reports", JSON, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name="fk_alias_moves_profile_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("profile_id", "alias", "seq", name="pk_alias_moves"),
    )
    op.create_table(
        "alias_gates",
        sa.Column("profile_id", sa.String(length=40), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("gate", JSON, nullable=False),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name="fk_alias_gates_profile_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("profile_id", "alias", name="pk_alias_gates"),
    )


def downgrade() -> None:
    op.drop_table("alias_gates")
    op.drop_table("alias_moves")
    op.drop_column("profile_aliases", "canary")
