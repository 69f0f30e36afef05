"""Child processes of the tests: free ports, and an end that always comes."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_free_port(start: Callable[[int], T], attempts: int = 5) -> T:
    """Call ``start`` with a free port, again with another one when somebody was faster."""
    for _ in range(attempts - 1):
        with contextlib.suppress(RuntimeError):
            return start(free_port())
    return start(free_port())


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
