"""The servers of the tests are what they claim to be."""

import os
import signal
import subprocess
import sys
import time

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.servers import PostgresServer, RedisServer, run_redis


@pytest.mark.parametrize("fixture", ["valkey_server", "redis_server"])
def test_redis_asks_for_the_password(fixture: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer = request.getfixturevalue(fixture)
    with (
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}


@pytest.mark.process
def test_killed_valkey_keeps_its_data_and_a_lost_disk_does_not() -> None:
    with run_redis() as server, redis.Redis.from_url(server.url) as client:
        client.set("queued", "job")
        with server.outage():
            pass
        assert client.get("queued") == b"job"
        with server.outage():
            server.forget()
        assert client.get("queued") is None


def test_valkey_reports_why_it_did_not_start(valkey_server: RedisServer) -> None:
    with run_redis() as server:
        server.stop()
        server.port = valkey_server.port
        with pytest.raises(RuntimeError, match="in use"):
            server.start()


def test_postgres_gives_each_test_its_database(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as first, postgres_server.database() as second:
        assert first != second
        for url in (first, second):
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                connection.execute("CREATE TABLE marks (id int)")


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_server_ends_with_the_process_that_started_it() -> None:
    program = (
        "import os, sys, time\n"
        "from tests.support.servers import run_redis\n"
        "with run_redis() as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=os.getcwd())
    assert parent.stdout is not None
    with parent.stdout:
        server = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while _is_running(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"  # there may be no parent to reap it
    except FileNotFoundError:
        return False
