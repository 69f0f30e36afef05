"""``armature up``: the whole platform as real processes on one machine, from Python packages alone.

A part that the environment does not name is embedded: a Valkey server as the broker, SQLite as the database, a folder
as the object store, all below one data directory. The services read the same settings as in any other deployment.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from armature.settings import ENV_PREFIX
from armature_cli.local_platform.die_with_parent import die_with_parent
from armature_cli.local_platform.ports import HOST, PortTaken, reserved_ports
from armature_cli.local_platform.supervisor import Supervisor
from armature_cli.local_platform.valkey import start_valkey, valkey_url

READY_SECONDS = 120.0
SERVICES = {
    "api": "armature_api",
    "relay": "armature_api.relay",
    "worker": "armature_worker",
    "decoder": "armature_decoder",
}
"""Module by service."""
HTTP_SERVICES = ("api", "decoder")
MAX_THREADS = 4
"""Upper bound of OMP_NUM_THREADS unless it is set, besides half of the cores: worker and decoder share the machine, and
threads that wait for each other on busy cores are far slower than a single one."""


class PlatformError(Exception):
    """The platform cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    """Where the embedded platform keeps its data and where it listens; port 0 picks a free one."""

    data: Path = Path(".armature")
    api_port: int = 8000
    decoder_port: int = 8100
    redis_port: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings on top of this process's environment."""


class EmbeddedPlatform:
    """The running platform; a context manager that is entered once every service answers."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.data = options.data.resolve()
        self.api_url = ""
        self.decoder_url = ""
        self.supervisor: Supervisor | None = None
        self.settings: dict[str, str] = {}
        """Environment of the services."""
        self._addresses: dict[str, str] = {}
        self._held = ExitStack()

    def __enter__(self) -> Self:
        if not self.data.exists():  # a start that fails must leave no new directory
            with self._reserved_ports():
                pass
        try:
            self._held.enter_context(_lock(self.data))
            self._start(*self._held.enter_context(self._reserved_ports()))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def admin_key_file(self) -> Path:
        """File of the first key, readable by its owner only."""
        return self.data / "admin.key"

    @property
    def admin_key(self) -> str:
        """Key that the first start issued.

        Raises:
            PlatformError: The database that the environment names had keys already, so none was issued here.
        """
        try:
            return self.admin_key_file.read_text().strip()
        except FileNotFoundError:
            raise PlatformError(f"the database had keys already; put one into {self.admin_key_file}") from None

    def describe(self) -> list[str]:
        """Describe each process (name, pid, address), the first key and the logs, a line each."""
        assert self.supervisor is not None
        lines = [
            f"{child.name:8} pid {child.pid:<8} {self._addresses.get(child.name, '')}".rstrip()
            for child in self.supervisor.children.values()
        ]
        key = self.admin_key_file if self.admin_key_file.exists() else "issued before, with the database"
        return [*lines, f"key      {key}", f"logs     {self.data / 'logs'}"]

    def start_services(self) -> None:
        """Start every service; return once those with HTTP answer."""
        for name in SERVICES:
            self.spawn(name)
        for name in HTTP_SERVICES:
            self.wait(name)

    def stop(self) -> None:
        """Stop every process, the broker last, and release the data directory."""
        self._held.close()
        self.supervisor = None

    def _start(self, api_port: int, decoder_port: int, redis_port: int) -> None:
        self.supervisor = Supervisor()
        self._held.callback(self.supervisor.stop)
        self.api_url, self.decoder_url = f"http://{HOST}:{api_port}", f"http://{HOST}:{decoder_port}"
        self._addresses = {"api": self.api_url, "decoder": f"{self.decoder_url}/v1", "valkey": f"{HOST}:{redis_port}"}
        self.settings = self._environment(redis_port)
        self._bootstrap()
        self.start_services()

    @contextmanager
    def _reserved_ports(self) -> Iterator[list[int]]:
        try:
            with reserved_ports(self.options.api_port, self.options.decoder_port, self.options.redis_port) as ports:
                yield ports
        except PortTaken as error:
            raise PlatformError(str(error)) from error

    def _environment(self, redis_port: int) -> dict[str, str]:
        """This process's environment and the options', with defaults for settings that neither has."""
        given = {**os.environ, **self.options.environment}
        threads = str(max(1, min((os.cpu_count() or 2) // 2, MAX_THREADS)))
        defaults = {
            "DATABASE__URL": f"sqlite:///{self.data / 'armature.db'}",
            "STORE__KIND": "local",
            "STORE__PATH": str(self.data / "store"),
            "JOBS__LEASE_SECONDS": "10",
            "JOBS__RELAY_INTERVAL": "0.5",
            "JOBS__RESEND_AFTER": "10",
            "WORKER__WORK_DIR": str(self.data / "work"),
            "WORKER__MAX_TASKS_PER_CHILD": "1000",  # else each job imports torch anew
            "DECODER__CACHE_DIR": str(self.data / "decoder"),
        }
        environment = {"OMP_NUM_THREADS": threads, **{ENV_PREFIX + name: value for name, value in defaults.items()}}
        environment |= given
        if f"{ENV_PREFIX}REDIS__URL" not in given:
            environment[f"{ENV_PREFIX}REDIS__URL"] = self._start_broker(redis_port)
        return environment

    def _start_broker(self, port: int) -> str:
        assert self.supervisor is not None
        password = secrets.token_hex(16)

        def start() -> subprocess.Popen[bytes]:
            return start_valkey(self.data / "valkey", port, password)

        try:
            self.supervisor.add("valkey", start)
        except RuntimeError as error:
            raise PlatformError(str(error)) from error
        return valkey_url(port, password)

    def _bootstrap(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "armature_api.bootstrap"],
            env=self.settings,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PlatformError(f"the database cannot be prepared:\n{done.stderr.strip()[-2000:]}")
        token = json.loads(done.stdout)["token"]
        if token:
            with os.fdopen(os.open(self.admin_key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(token + "\n")

    def spawn(self, name: str) -> None:
        """Start one of :data:`SERVICES` and keep it running."""
        assert self.supervisor is not None
        log, alive = self.data / "logs" / f"{name}.log", self._liveness_file(name)
        log.parent.mkdir(exist_ok=True)
        alive.unlink(missing_ok=True)
        environment = {**self.settings, f"{ENV_PREFIX}LIVENESS__FILE": str(alive)}
        if name in HTTP_SERVICES:
            environment |= _listen(self.api_url if name == "api" else self.decoder_url)

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    die_with_parent([sys.executable, "-m", SERVICES[name]]),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others in order
                )

        self.supervisor.add(name, start)

    def _liveness_file(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.alive"

    def wait(self, name: str) -> None:
        """Return once a service answers or, without HTTP, has written its liveness file.

        Raises:
            PlatformError: The service is not ready in time or keeps ending; the message has the end of its log.
        """
        deadline = time.monotonic() + READY_SECONDS
        with httpx.Client(timeout=2) as http:
            while time.monotonic() < deadline:
                assert self.supervisor is not None
                if self.supervisor.children[name].restarts > 2:
                    break
                if self._is_ready(name, http):
                    return
                time.sleep(0.1)
        log_end = (self.data / "logs" / f"{name}.log").read_text(errors="replace")[-2000:]
        raise PlatformError(f"{name} did not become ready; its log ends with:\n{log_end}")

    def _is_ready(self, name: str, http: httpx.Client) -> bool:
        urls = {"api": self.api_url, "decoder": self.decoder_url}
        if name not in urls:
            return self._liveness_file(name).exists()
        try:
            return http.get(f"{urls[name]}/readyz").is_success
        except httpx.TransportError:
            return False


def _listen(url: str) -> dict[str, str]:
    return {f"{ENV_PREFIX}HTTP__HOST": HOST, f"{ENV_PREFIX}HTTP__PORT": str(httpx.URL(url).port)}


def _lock(data: Path) -> IO[str]:
    """Create the data directory, for its owner only, and lock it against a second platform.

    Raises:
        PlatformError: A platform runs there already.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (data / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise PlatformError(f"a platform is running on {data} already; stop it, or choose another --data") from error
    return lock
