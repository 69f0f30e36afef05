"""Child processes of the tests: ports of their own, and an end that always comes."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from armature_cli.local_platform.ports import reserved_ports

_reservations = contextlib.ExitStack()


def reserve_port() -> int:
    """A loopback port that stays this process's own while it lives, whatever happens to the servers on it."""
    return _reservations.enter_context(reserved_ports(0))[0]


def stop(process: subprocess.Popen, first: signal.Signals = signal.SIGTERM, patience: float = 10.0) -> None:
    """Ask the process to end, then kill its whole group."""
    if process.poll() is None:
        process.send_signal(first)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def scratch_directory(name: str) -> Iterator[Path]:
    """A directory with a short path (sockets) that goes away at the end."""
    with tempfile.TemporaryDirectory(prefix=f"armature-{name}-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def wait_until(condition: Callable[[], object], seconds: float = 40.0, what: str = "") -> None:
    """Poll until the condition holds; the test fails with ``what`` if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what or condition}"
        time.sleep(0.05)


def wait_until_ready(process: subprocess.Popen, http: httpx.Client, log: Path) -> None:
    """Poll a service until it answers that it is ready; the test fails with the log if the process ends."""

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return http.get("/readyz").status_code == 200
        return False

    wait_until(is_ready, 120, "a service")  # imports of a fresh installation take their time
