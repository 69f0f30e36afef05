"""The embedded platform as real processes: start, restarts, refusals, and what remains after a stop."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from armature.client import Client
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options, PlatformError
from tests.support.processes import stop, wait_until
from tests.support.servers import RedisServer

pytestmark = pytest.mark.e2e


def options(folder: Path, **environment: str) -> Options:
    return Options(folder, 0, 0, 0, environment)


def is_alive(pid: int) -> bool:
    """Whether the process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(platform: EmbeddedPlatform) -> dict[str, int]:
    assert platform.supervisor is not None
    return {name: child.pid for name, child in platform.supervisor.children.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded") / "data"


@pytest.fixture(scope="module")
def platform(data: Path) -> Iterator[EmbeddedPlatform]:
    with EmbeddedPlatform(options(data)) as running:
        yield running


def test_every_process_runs_and_is_listed(platform: EmbeddedPlatform) -> None:
    running = pids(platform)
    assert list(running) == ["valkey", "api", "relay", "worker", "decoder"]
    assert all(is_alive(pid) for pid in running.values())
    lines = platform.describe()
    for name, pid in running.items():
        assert any(line.split()[:3] == [name, "pid", str(pid)] for line in lines)
    assert any(platform.api_url in line for line in lines)
    assert not any(platform.admin_key in line for line in lines)


def test_the_first_key_opens_the_api_and_is_private(platform: EmbeddedPlatform) -> None:
    assert stat.S_IMODE(platform.admin_key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(platform.data.stat().st_mode) == 0o700
    with Client(platform.api_url, platform.admin_key) as client:
        assert client.tenants.ensure("team").name == "team"
    assert httpx.get(f"{platform.api_url}/v1/tenants").status_code == 401


def test_a_second_platform_on_the_same_data_is_refused(platform: EmbeddedPlatform) -> None:
    before = pids(platform)
    with pytest.raises(PlatformError, match=r"running on .* already"), EmbeddedPlatform(options(platform.data)):
        pass
    assert pids(platform) == before
    assert httpx.get(f"{platform.api_url}/readyz").is_success


@pytest.mark.parametrize("name", ["valkey", "api", "relay", "worker", "decoder"])
def test_a_killed_process_is_restarted(platform: EmbeddedPlatform, name: str) -> None:
    before = pids(platform)
    os.kill(before[name], signal.SIGKILL)
    wait_until(lambda: pids(platform)[name] != before[name], what=f"another {name}")
    assert {other: pid for other, pid in pids(platform).items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }
    for url in (platform.api_url, platform.decoder_url):
        wait_until(lambda url=url: answers(url), what=url)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


def test_restart_keeps_data_and_leaves_nothing_running(tmp_path: Path, redis_server: RedisServer) -> None:
    """The second start names a broker, which replaces the embedded one."""
    with EmbeddedPlatform(options(tmp_path)) as first:
        running, key = pids(first), first.admin_key
        with Client(first.api_url, key) as client:
            tenant = client.tenants.ensure("team")
    assert not [pid for pid in running.values() if is_alive(pid)]
    with EmbeddedPlatform(options(tmp_path, ARMATURE_REDIS__URL=redis_server.url)) as second:
        assert list(pids(second)) == ["api", "relay", "worker", "decoder"]
        assert second.admin_key == key
        with Client(second.api_url, key) as client:
            assert client.tenants.ensure("team").id == tenant.id


def test_a_taken_port_is_named_each_time(tmp_path: Path) -> None:
    """The refused first attempt has released the data directory."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for attempt in (Options(tmp_path, port, 0), Options(tmp_path, 0, port)):
            with pytest.raises(PlatformError, match=f"port {port} is taken"), EmbeddedPlatform(attempt):
                pass
        with pytest.raises(PlatformError, match="is taken"), EmbeddedPlatform(Options(tmp_path / "new", port, 0)):
            pass
    assert not (tmp_path / "new").exists()


def test_an_unusable_database_is_reported(tmp_path: Path) -> None:
    wrong = options(tmp_path, ARMATURE_DATABASE__URL="postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(PlatformError, match="database cannot be prepared"), EmbeddedPlatform(wrong):
        pass


def test_the_processes_of_a_killed_command_end(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("armature"), "up", "--data", tmp_path]
    ports = ["--api-port", "0", "--decoder-port", "0"]
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            children = []
            assert process.stdout.readline().startswith("Starting")
            for line in process.stdout:
                words = line.split()
                if words[1:2] == ["pid"]:
                    children.append(int(words[2]))
                if line.startswith("Running"):
                    break
            assert len(children) == 5
            assert all(map(is_alive, children))
            process.kill()
            wait_until(lambda: not any(map(is_alive, children)), what="the end of all children")
        finally:
            stop(process)
