"""Limits and last use, scopes of two words, and the audit log, which nothing can change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

READ_AND_WRITE = ("data", "jobs", "artifacts")
SCOPES = {
    "jobs": [
        *(f"{area}:{access}" for area in READ_AND_WRITE for access in ("read", "write")),
        "harmful:read",
        "harmful:write",
    ],
    "profiles": ["profiles:read", "profiles:write"],
    "platform": ["platform", "audit:read"],
}
"""What a scope of one word allowed."""

REFUSE = {
    "sqlite": [
        f"""CREATE TRIGGER audit_entries_{event.lower()} BEFORE {event} ON audit_entries
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"""
        for event in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        """CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
        """CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
        FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()""",
    ],
}


def upgrade() -> None:
    op.add_column("tenants", sa.Column("limits", JSON, nullable=False, server_default="{}"))
    op.add_column("tenants", sa.Column("served_at", sa.Double(), nullable=False, server_default="0"))
    op.add_column("api_keys", sa.Column("last_used_at", sa.Double(), nullable=True))
    _rename_scopes(SCOPES)
    op.create_table(
        "audit_heads",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_audit_heads_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_audit_heads"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=255), nullable=False),
        sa.Column("before", sa.String(length=64), nullable=True),
        sa.Column("after", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_audit_entries_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "seq", name="pk_audit_entries"),
    )
    for statement in REFUSE[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("audit_entries")
    op.drop_table("audit_heads")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_is_append_only()")
    _rename_scopes({scope: [old] for old, new in SCOPES.items() for scope in new})
    op.drop_column("api_keys", "last_used_at")
    op.drop_column("tenants", "served_at")
    op.drop_column("tenants", "limits")


def _rename_scopes(names: dict[str, list[str]]) -> None:
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("scopes", JSON))
    connection = op.get_bind()
    for id, scopes in connection.execute(sa.select(keys.c.id, keys.c.scopes)).all():
        renamed = sorted({new for old in scopes for new in names.get(old, [old])})
        connection.execute(keys.update().where(keys.c.id == id).values(scopes=renamed))
