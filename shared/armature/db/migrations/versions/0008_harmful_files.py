"""Files are marked harmful: what a harm vector is made from is not for every key, nor for other jobs.

Files from before are marked when the next job makes a harm vector from them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("harmful", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("files") as files:
        files.alter_column("harmful", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("files") as files:
        files.drop_column("harmful")
