"""PostgreSQL's own wall between tenants, behind the one that every query builds by filtering for its tenant.

Each transaction names the tenant for whom it acts in a setting that ends with it; policies let it see and write that
tenant's rows and see what others share. A query that forgets its filter finds nothing that is foreign, a transaction
that names nobody finds nothing at all. The worker, the relay and platform routes name :data:`SYSTEM`.

The policies are derived from the models and renewed by each upgrade, so a new table can not be left out.
"""

from __future__ import annotations

from sqlalchemy import Connection, Table, inspect, text

from armature.contracts.base import digest
from armature.db.base import Base
from armature.db.models import Artifact, BaseModel, Tenant

SETTING = "armature.tenant"
SYSTEM = "*"
"""Whoever acts for this sees every row."""
TENANT_ROLE = "armature_tenant"
"""Taken on where the login role is above row security; made by the upgrade, can not log in."""

_ME = f"current_setting('{SETTING}', true)"
_CREATE_ROLE = f"""
DO $$ BEGIN CREATE ROLE {TENANT_ROLE} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN NULL; END $$"""
"""A role that may not make roles is not above row security either, and needs none."""
_GRANTS = (
    f"GRANT USAGE ON SCHEMA public TO {TENANT_ROLE}",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {TENANT_ROLE}",
)


def secure_rows(connection: Connection) -> None:
    """Enable row security, for the owner too, on each table of tenants' rows. Rules that stand are left alone."""
    existing = set(inspect(connection).get_table_names())
    present = connection.execute(
        text("SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'public'")
    ).all()
    stale = [
        (table, policies)
        for table in Base.metadata.sorted_tables
        if table.name in existing
        and (policies := _policies(table))
        and set(policies) != {name for owner, name in present if owner == table.name}
    ]
    for table, policies in stale:
        for name in (name for owner, name in present if owner == table.name):
            connection.execute(text(f"DROP POLICY {name} ON {table.name}"))
        connection.execute(text(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"))
        for name, rule in policies.items():
            connection.execute(text(f"CREATE POLICY {name} ON {table.name} {rule}"))
    if stale:
        _let_the_role_in(connection)


def _let_the_role_in(connection: Connection) -> None:
    connection.execute(text(_CREATE_ROLE))
    if connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :name"), {"name": TENANT_ROLE}):
        for statement in _GRANTS:
            connection.execute(text(statement))


def tenant_rule(table: Table) -> str | None:
    """The SQL condition under which a row belongs to whom the transaction acts for; None: it belongs to nobody.

    A row without a tenant of its own belongs to the tenant of the row that its primary key refers to.
    """
    owner = "id" if table is Tenant.__table__ else "tenant_id"
    if owner in table.c:
        return f"{_ME} IN ({owner}, '{SYSTEM}')"
    for key in table.primary_key.columns:
        for reference in key.foreign_keys:
            parent = reference.column
            # The parent's own policies hold inside of the subquery.
            return f"EXISTS (SELECT FROM {parent.table.name} p WHERE p.{parent.name} = {table.name}.{key.name})"
    return None


def _policies(table: Table) -> dict[str, str]:
    """The table's policies by name. A name ends in its rule's digest, so that a rule that changed is noticed."""
    if (rule := tenant_rule(table)) is None:
        return {}
    rules = {"tenant": f"USING ({rule})"}
    if table in (Artifact.__table__, BaseModel.__table__):
        rules["shared"] = f"FOR SELECT USING (shared AND {_ME} <> '')"
    return {f"{name}_{digest(rule)[:12]}": rule for name, rule in rules.items()}
