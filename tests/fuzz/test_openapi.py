"""Requests made up from the OpenAPI documents of both services: whatever they are, the answers are as documented.

A small, fixed budget with every check. For a thorough run, leave ``--phases`` away and raise ``--max-examples``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from armature.settings import DatabaseSettings
from armature.storage.local import LocalArtifactStore
from tests.api.test_api_process import serve
from tests.support.servers import RedisServer
from tests.support.serving import ServedInstallation, publish_bundle, run_decoder

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
BUDGET = ["--phases", "examples,fuzzing,stateful", "--max-examples", "3", "--seed", "1"]


def fuzz(url: str, token: str, folder: Path) -> None:
    """Run every check; the test fails with the report."""
    command = [str(SCHEMATHESIS), "--config-file", str(CONFIG), "run", f"{url}/openapi.json", "--checks", "all"]
    done = subprocess.run(
        [*command, *BUDGET, "--no-color", "--warnings", "off", "-H", f"Authorization: Bearer {token}"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No test cases" not in done.stdout


@pytest.fixture(autouse=True)
def any_number_of_wrong_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the checks presents wrong keys on purpose, many of them."""
    monkeypatch.setenv("ARMATURE_HTTP__WRONG_KEYS_PER_MINUTE", "1000000")


def test_the_api_answers_as_documented(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    with serve(sqlite_settings, tmp_path, valkey_server.url) as served:
        fuzz(str(served.client.base_url), served.token, tmp_path)
        assert served.token not in served.log.read_text()


def test_the_decoder_answers_as_documented(tmp_path: Path) -> None:
    installation = ServedInstallation(LocalArtifactStore(tmp_path / "store"))
    installation.add_tenant("acme")
    installation.point("acme", "care", publish_bundle(installation.store, tmp_path, seed=1).manifest)
    token = installation.add_key("acme")
    installation.publish()
    with run_decoder(tmp_path, installation) as decoder:
        decoder.wait_ready(token, "care")
        fuzz(decoder.url, token, tmp_path)
        assert token not in decoder.log.read_text()
