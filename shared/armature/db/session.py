"""Engines and sessions for the two databases: SQLite in WAL mode, and PostgreSQL through psycopg.

A unit of work is ``with sessions.begin() as session``: committed at its end, rolled back by an exception. On SQLite it
takes the write lock at its start, so a read followed by a write never fails for want of a lock upgrade and every
function of the job protocol sees its rows stand still. Code that only reads says so (``read_only=True``) and then
neither waits for writers nor delays them.

On PostgreSQL a transaction says for whom it acts, and sees that tenant's rows alone (:mod:`armature.db.row_security`).
The saying ends with the transaction, so nothing of it is left on a connection that goes back to the pool.
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
"""What SQLAlchemy raises when the database does not answer, as opposed to when it says no."""

_BUSY_SECONDS = 30
_READ_ONLY = "armature_read_only"
_ACTS_FOR = "armature_acts_for"
_UNBOUND = "armature_unbound"

_SQLITE: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}}
_POSTGRESQL: dict[str, Any] = {
    # A vanished server is noticed in seconds: a heartbeat that hangs for minutes would outlive its lease.
    "connect_args": {"connect_timeout": 5, "keepalives_idle": 10, "tcp_user_timeout": 10_000},
    "pool_pre_ping": True,
}
_OPTIONS = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}


def make_engine(settings: DatabaseSettings) -> Engine:
    """An engine for the URL; for SQLite the file's folder is created.

    Raises:
        ValueError: The URL names another database than SQLite or PostgreSQL.
    """
    url = make_url(settings.url.get_secret_value())
    backend = url.get_backend_name()
    if backend not in _OPTIONS:
        raise ValueError(f"database.url: {backend} is not supported, only sqlite and postgresql+psycopg")
    if backend == "sqlite":
        _make_folder(url)
    engine = create_engine(url, pool_size=settings.pool_size, **_OPTIONS[backend])
    if backend == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _note_privileges)
        event.listen(engine, "begin", _begin_postgresql)
    return engine


def make_session_factory(engine: Engine, *, read_only: bool = False) -> sessionmaker[Session]:
    """Sessions on the engine that act for the whole system. Loaded rows stay readable after the commit."""
    options: dict[str, Any] = {_READ_ONLY: True, "postgresql_readonly": True} if read_only else {}
    return sessionmaker(engine.execution_options(**{_ACTS_FOR: SYSTEM}, **options), expire_on_commit=False)


def session_for(sessions: sessionmaker[Session], tenant_id: str) -> Session:
    """A session of the factory that acts for one tenant."""
    bind: Engine = sessions.kw["bind"]
    return sessions(bind=bind.execution_options(**{_ACTS_FOR: tenant_id}))


def _make_folder(url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction control begins late and commits early; _begin_sqlite takes its place.
    connection.isolation_level = None
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """A file stays switched. Of connections that switch a new one together SQLite lets one win, and refuses the others
    at once, whatever their timeout.
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
    """Row security does not bind superusers; transactions of theirs take on the role that it binds."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
        record.info[_UNBOUND] = cursor.fetchone()[0]
    connection.rollback()


def _begin_postgresql(connection: Connection) -> None:
    acts_for = connection.get_execution_options().get(_ACTS_FOR)
    if acts_for is None:  # a connection without a session: it sees no tenant's rows
        return
    settings = {SETTING: acts_for}
    if acts_for != SYSTEM and connection.info[_UNBOUND]:
        settings["role"] = TENANT_ROLE
    calls = ", ".join("set_config(%s, %s, true)" for _ in settings)
    connection.exec_driver_sql(f"SELECT {calls}", tuple(part for pair in settings.items() for part in pair))
