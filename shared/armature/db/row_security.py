"""Row-level security on PostgreSQL: a second wall between tenants, behind each query's tenant filter.

Each transaction names its tenant in a transaction-local setting; policies let it read and write that tenant's rows and
read shared ones. A query without its filter then finds no foreign row, and a transaction without the setting finds no
row at all. The worker, the relay and platform routes name :data:`SYSTEM`.

The policies are derived from the models and renewed by each upgrade, so a new table can not be left out.
"""

from __future__ import annotations

from sqlalchemy import Connection, Table, inspect, text

from armature.contracts.base import digest
from armature.db.base import Base
from armature.db.models import Artifact, BaseModel, Tenant

SETTING = "armature.tenant"
SYSTEM = "*"
"""The setting's value that makes every row visible."""
TENANT_ROLE = "armature_tenant"
"""A NOLOGIN role, made by the upgrade, that transactions switch to if the login role bypasses row security."""

_ME = f"current_setting('{SETTING}', true)"
_CREATE_ROLE = f"""
DO $$ BEGIN CREATE ROLE {TENANT_ROLE} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN NULL; END $$"""
"""A login role without the privilege to create roles does not bypass row security and needs no second role."""
_GRANTS = (
    f"GRANT USAGE ON SCHEMA public TO {TENANT_ROLE}",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {TENANT_ROLE}",
)


def secure_rows(connection: Connection) -> None:
    """Enable row security, for the owner too, on each table with tenants' rows; renew stale policies."""
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
        _grant_tenant_role(connection)


def _grant_tenant_role(connection: Connection) -> None:
    connection.execute(text(_CREATE_ROLE))
    if connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :name"), {"name": TENANT_ROLE}):
        for statement in _GRANTS:
            connection.execute(text(statement))


def tenant_rule(table: Table) -> str | None:
    """Return the SQL condition that a row belongs to the transaction's tenant; None for a global table.

    A row without a tenant column belongs to the tenant of the row that its primary key refers to.
    """
    owner = "id" if table is Tenant.__table__ else "tenant_id"
    if owner in table.c:
        return f"{_ME} IN ({owner}, '{SYSTEM}')"
    for key in table.primary_key.columns:
        for reference in key.foreign_keys:
            parent = reference.column
            # The parent table's policies apply inside the subquery.
            return f"EXISTS (SELECT FROM {parent.table.name} p WHERE p.{parent.name} = {table.name}.{key.name})"
    return None


def _policies(table: Table) -> dict[str, str]:
    """Return the table's policies by name. A name ends in its rule's digest, which reveals a stale one."""
    if (rule := tenant_rule(table)) is None:
        return {}
    rules = {"tenant": f"USING ({rule})"}
    if table in (Artifact.__table__, BaseModel.__table__):
        rules["shared"] = f"FOR SELECT USING (shared AND {_ME} <> '')"
    return {f"{name}_{digest(rule)[:12]}": rule for name, rule in rules.items()}
