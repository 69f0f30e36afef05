"""Requests generated from the OpenAPI documents of both services: every response is as documented.

A small, fixed budget with every check in every phase. For a thorough run, raise ``--max-examples``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from armature.contracts.tenants import Scope
from armature.settings import DatabaseSettings
from armature.storage.local import LocalArtifactStore
from tests.api.test_api_process import Served, serve
from tests.support.servers import RedisServer
from tests.support.serving import ServedInstallation, publish_bundle, run_decoder

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
BUDGET = ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "3", "--seed", "1"]


def fuzz(url: str, tokens: dict[str, str], folder: Path) -> None:
    """Run every check with these keys, two of them of tenants isolated from each other; a failure shows the report."""
    users = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {token}"}]}
        for name, token in tokens.items()
    ]
    (folder / "users.json").write_text(json.dumps({"auth": users}))
    shutil.copy(CONFIG, folder)
    done = subprocess.run(
        [
            str(SCHEMATHESIS),
            "run",
            f"{url}/openapi.json",
            "--checks",
            "all",
            *BUDGET,
            "--no-color",
            "--warnings",
            "off",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No test cases" not in done.stdout


def issue_key(served: Served, tenant: str) -> str:
    """Create a tenant and a key with every scope that a tenant may have."""
    id = served.client.post("/v1/tenants", json={"name": tenant}).json()["id"]
    scopes = [scope for scope in get_args(Scope) if scope != "platform"]
    token: str = served.client.post(f"/v1/tenants/{id}/keys", json={"scopes": scopes}).json()["token"]
    return token


@pytest.fixture(autouse=True)
def any_number_of_wrong_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the limit on wrong keys: one of the checks presents many on purpose."""
    monkeypatch.setenv("ARMATURE_HTTP__WRONG_KEYS_PER_MINUTE", "1000000")


def test_the_api_answers_as_documented(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    with serve(sqlite_settings, tmp_path, valkey_server.url) as served:
        tokens = {name: issue_key(served, name) for name in ("acme", "umbrella")} | {"platform": served.token}
        fuzz(str(served.client.base_url), tokens, tmp_path)
        log = served.log.read_text()
    assert [name for name, token in tokens.items() if token in log] == []


@pytest.mark.process
def test_the_decoder_answers_as_documented(tmp_path: Path) -> None:
    installation = ServedInstallation(LocalArtifactStore(tmp_path / "store"))
    manifest = publish_bundle(installation.store, tmp_path, seed=1).manifest
    tokens = {}
    for name in ("acme", "umbrella"):
        installation.add_tenant(name)
        installation.point(name, "care", manifest)
        tokens[name] = installation.add_key(name)
    installation.publish()
    with run_decoder(tmp_path, installation) as decoder:
        for token in tokens.values():
            decoder.wait_ready(token, "care")
        fuzz(decoder.url, tokens, tmp_path)
        log = decoder.log.read_text()
    assert [name for name, token in tokens.items() if token in log] == []
