"""Engines and sessions for the two databases: SQLite in WAL mode, and PostgreSQL through psycopg.

A unit of work is ``with sessions.begin() as session``: committed at its end, rolled back by an exception. On SQLite it
takes the write lock at its start (BEGIN IMMEDIATE), so a read followed by a write never fails on a lock upgrade, and
the rows read by the job protocol can not change underneath it. A ``read_only=True`` session neither waits for writers
nor delays them.

On PostgreSQL a transaction names its tenant and sees that tenant's rows only (:mod:`armature.db.row_security`). The
setting is local to the transaction, so a connection returns to the pool without it.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from armature.db.row_security import SETTING, SYSTEM, TENANT_ROLE
from armature.settings import DatabaseSettings

DATABASE_OUTAGES = (OperationalError, InterfaceError, PoolTimeout)
"""Exceptions of a database that can not be reached, as opposed to a refused statement."""

_BUSY_SECONDS = 30
_READ_ONLY = "armature_read_only"
_TENANT = "armature_tenant"
_BYPASSES_RLS = "armature_bypasses_rls"

_SQLITE: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}}
_POSTGRESQL: dict[str, Any] = {
    # Detect a dead server within seconds: a heartbeat that hangs for minutes would outlive its lease.
    "connect_args": {"connect_timeout": 5, "keepalives_idle": 10, "tcp_user_timeout": 10_000},
    "pool_pre_ping": True,
}
_OPTIONS = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}


def make_engine(settings: DatabaseSettings) -> Engine:
    """Make an engine for the configured URL; for SQLite, create the file's folder.

    Raises:
        ValueError: The URL names a database other than SQLite or PostgreSQL.
    """
    url = make_url(settings.url.get_secret_value())
    backend = url.get_backend_name()
    if backend not in _OPTIONS:
        raise ValueError(f"database.url: {backend} is not supported, only sqlite and postgresql+psycopg")
    if backend == "sqlite":
        _make_folder(url)
    engine = create_engine(url, pool_size=settings.pool_size, **_options(backend, settings))
    if backend == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _note_privileges)
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def _options(backend: str, settings: DatabaseSettings) -> dict[str, Any]:
    options = _OPTIONS[backend]
    if backend == "sqlite" or settings.prepared_statements:
        return options
    return options | {"connect_args": options["connect_args"] | {"prepare_threshold": None}}


def make_session_factory(engine: Engine, *, read_only: bool = False) -> sessionmaker[Session]:
    """Make a factory of sessions that see every tenant's rows. Loaded rows stay readable after the commit."""
    options: dict[str, Any] = {_READ_ONLY: True, "postgresql_readonly": True} if read_only else {}
    return sessionmaker(engine.execution_options(**{_TENANT: SYSTEM}, **options), expire_on_commit=False)


def session_for(sessions: sessionmaker[Session], tenant_id: str) -> Session:
    """Make a session of the factory ``sessions`` that sees one tenant's rows."""
    bind: Engine = sessions.kw["bind"]
    return sessions(bind=bind.execution_options(**{_TENANT: tenant_id}))


def _make_folder(url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's implicit transactions begin late and commit early; _begin_sqlite replaces them.
    connection.isolation_level = None
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch the database file to WAL, which persists; retry while another connection does the same.

    SQLite answers SQLITE_BUSY at once to concurrent switches of a new file, whatever the busy timeout.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _note_privileges(connection: Any, record: Any) -> None:
    """Record whether the login role bypasses row security; its transactions then switch the role."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
        record.info[_BYPASSES_RLS] = cursor.fetchone()[0]
    connection.rollback()


def _begin_postgresql(connection: Connection) -> None:
    tenant_id = connection.get_execution_options().get(_TENANT)
    if tenant_id is None:  # a connection without a session sees no tenant's rows
        return
    settings = {SETTING: tenant_id}
    if tenant_id != SYSTEM and connection.info[_BYPASSES_RLS]:
        settings["role"] = TENANT_ROLE
    calls = ", ".join("set_config(%s, %s, true)" for _ in settings)
    connection.exec_driver_sql(f"SELECT {calls}", tuple(part for pair in settings.items() for part in pair))
