"""Database migrations by Alembic. They ship inside the package, so no alembic.ini is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from armature.db.row_security import secure_rows

_ADVISORY_LOCK = 0x41524D41  # an arbitrary constant; serializes the upgrades of services that start together
_ALEMBIC_LOCK = Lock()
"""Alembic keeps its context in module globals, which all threads of a process share."""


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Apply the migrations up to ``revision`` in one transaction: all of them or none."""
    with _ALEMBIC_LOCK, _begin(engine) as connection:
        command.upgrade(_config(connection), revision)
        if connection.dialect.name == "postgresql":
            secure_rows(connection)


def downgrade(engine: Engine, revision: str) -> None:
    """Undo the migrations above ``revision`` (``base``: every one) in one transaction."""
    with _ALEMBIC_LOCK, _begin(engine) as connection:
        command.downgrade(_config(connection), revision)


@contextmanager
def _begin(engine: Engine) -> Iterator[Connection]:
    """Open a transaction, on SQLite with foreign keys off.

    SQLite alters a table by copying it and dropping the original, which would cascade to the rows that refer to it. The
    pragma has no effect inside a transaction.
    """
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                    raise RuntimeError(f"the migration leaves dangling foreign keys: {broken[:3]}")
        finally:
            cursor.execute("PRAGMA foreign_keys = ON")


def _config(connection: Connection) -> Config:
    if connection.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE already holds the write lock
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
