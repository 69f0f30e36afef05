"""Keeps child processes running: starts them in order, restarts those that end, stops them in reverse."""

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
_FIRST_BACK_OFF = 0.5
_MAX_BACK_OFF = 30.0
_HEALTHY_SECONDS = 30.0
"""The back-off starts anew for a process that ran this long."""

_log = get_logger(__name__)


@dataclass
class Child:
    """A supervised process: how to start it, the current process, and the state of its back-off."""

    name: str
    start: Start
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    back_off: float = _FIRST_BACK_OFF
    restart_at: float | None = None
    restarts: int = 0

    @property
    def pid(self) -> int:
        """Id of the current process."""
        return self.process.pid


class Supervisor:
    """Children that run until :meth:`stop`; a thread restarts those that end, with back-off."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def add(self, name: str, start: Start) -> Child:
        """Start a child and keep it running. Raises what ``start`` raises."""
        child = Child(name, start, start())
        with self._lock:
            self.children[name] = child
        return child

    def stop(self) -> None:
        """Stop all children, the last started first: SIGTERM, then SIGKILL after a grace period."""
        self._stopping.set()
        with self._lock:  # the watching thread restarts no child from here on
            for child in reversed(self.children.values()):
                _end(child.process)
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            with self._lock:
                for child in self.children.values():
                    if child.process.poll() is not None and not self._stopping.is_set():
                        self._restart(child)
        self._stopped.wait()  # children die with the thread that started them: it must outlive them

    def _restart(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_at is None:
            if now - child.started_at > _HEALTHY_SECONDS:
                child.back_off = _FIRST_BACK_OFF
            child.restart_at = now + child.back_off
            child.back_off = min(child.back_off * 2, _MAX_BACK_OFF)
            _log.warning("process ended", name=child.name, status=child.process.returncode)
        if now < child.restart_at:
            return
        child.restart_at, child.started_at, child.restarts = None, now, child.restarts + 1
        try:
            child.process = child.start()
        except (OSError, RuntimeError) as error:
            _log.warning("process not restarted", name=child.name, error=str(error))
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
