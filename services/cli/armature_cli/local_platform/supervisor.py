"""Keeps child processes running: starts them in order, restarts what dies, stops them in reverse."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from armature.logging import get_logger

Start = Callable[[], "subprocess.Popen[bytes]"]

STOP_SECONDS = 20.0
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 30.0
"""After running this long, a process that dies is started again at once."""

_log = get_logger(__name__)


@dataclass
class Child:
    """A supervised process: how to start it, and the process as it is now."""

    name: str
    start: Start
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    pause: float = 0.5
    restart_at: float | None = None
    restarts: int = 0

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self.process.pid


class Supervisor:
    """Runs children until :meth:`stop`. One thread watches them; a child that ends is started again, with back-off."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._over, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def add(self, name: str, start: Start) -> Child:
        """Start a child and keep it running from now on. Raises what ``start`` raises."""
        child = Child(name, start, start())
        with self._lock:
            self.children[name] = child
        return child

    def stop(self) -> None:
        """End all children, the last started first, each with SIGTERM and time to finish, then SIGKILL."""
        self._over.set()
        with self._lock:  # from here on nothing is started again
            for child in reversed(self.children.values()):
                _end(child.process)
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            with self._lock:
                for child in self.children.values():
                    if child.process.poll() is not None and not self._over.is_set():
                        self._revive(child)
        self._ended.wait()  # children end with the thread that started them; their order is up to stop()

    def _revive(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_at is None:
            if now - child.started_at > _HEALTHY_SECONDS:
                child.pause = 0.5
            child.restart_at = now + child.pause
            child.pause = min(child.pause * 2, _LONGEST_PAUSE)
            _log.warning("process ended", name=child.name, status=child.process.returncode)
        if now < child.restart_at:
            return
        child.restart_at, child.started_at, child.restarts = None, now, child.restarts + 1
        try:
            child.process = child.start()
        except (OSError, RuntimeError) as error:
            _log.warning("process does not start", name=child.name, error=str(error))
        else:
            _log.warning("process restarted", name=child.name, pid=child.pid)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
