"""Empty PostgreSQL databases for the benchmark, on a given server or on one that is started for it."""

from __future__ import annotations

import secrets
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, make_url, text

from armature_cli.local_platform.ports import reserved_ports
from benchmarks.postgres import database_url, start_postgres


@contextmanager
def make_databases(server: str | None, folder: Path | None, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Create a database for each name and yield their URLs; drop the databases at the end.

    Args:
        server: URL of any database on a server whose user may create databases; None starts a server.
        folder: Parent of the data folder of a started server; None: the system's folder for temporary files.
        names: Keys of the result; part of the databases' names.

    Raises:
        PostgresMissing: No server is given, and no binaries are installed.
    """
    with ExitStack() as stack:
        url = make_url(server or stack.enter_context(_own_server(folder)))
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        stack.callback(engine.dispose)
        made = {}
        for name in names:
            database = f"armature_bench_{name}_{secrets.token_hex(4)}"
            _execute(engine, f'CREATE DATABASE "{database}"')
            stack.callback(_execute, engine, f'DROP DATABASE "{database}" WITH (FORCE)')
            made[name] = url.set(database=database).render_as_string(hide_password=False)
        yield made


@contextmanager
def _own_server(folder: Path | None) -> Iterator[str]:
    password = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="armature-postgres-", ignore_cleanup_errors=True) as data,
        reserved_ports(0) as (port,),
    ):
        process = start_postgres(Path(data) / "data", port, password)
        try:
            yield database_url(port, password, "postgres")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def _execute(engine: Engine, statement: str) -> None:
    with engine.connect() as connection:
        connection.execute(text(statement))
