"""The declarative base, and the column types and clock shared by SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, Index, MetaData, String, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

Id = String(40)
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""A JSON column that stores None as SQL NULL."""


class Base(DeclarativeBase):
    """Base of every table, with fixed constraint names that migrations can refer to."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def partial_index(name: str, *columns: str, where: str) -> Index:
    """Make an index over the rows for which the SQL condition ``where`` holds."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class db_now(FunctionElement[float]):
    """Seconds since the epoch by the database's clock: leases never compare two machines' clocks."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **_: Any) -> str:
    # A subquery is evaluated once per statement; clock_timestamp() alone is volatile and would rule out index scans.
    return "(SELECT extract(epoch from clock_timestamp())::double precision)"


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
