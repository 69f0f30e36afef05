"""Tenants and keys, and the bootstrap that makes the first of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select

from armature.contracts.tenants import parse_key
from armature.db.models import ApiKey, AuditEntry, Installation, Tenant
from armature.db.session import make_engine, make_session_factory
from armature.settings import DatabaseSettings
from armature_api.bootstrap import bootstrap
from armature_api.settings import ApiServiceSettings
from tests.support.api import Api, error_of


def test_a_key_is_shown_once_and_stored_as_a_hash(any_api: Api) -> None:
    tenant_id = any_api.platform.post("/v1/tenants", {"name": "acme"}).json()["id"]
    expires_at = int(time.time()) + 3600
    body = {"name": "ci", "scopes": ["jobs:read", "jobs:read", "generate"], "expires_at": expires_at}
    created = any_api.platform.post(f"/v1/tenants/{tenant_id}/keys", body).json()
    assert (created["scopes"], created["expires_at"]) == (["generate", "jobs:read"], expires_at)
    with any_api.resources.readers() as session:
        key = session.get_one(ApiKey, created["id"])
    assert parse_key(created["token"]) == (key.id, key.secret_sha256)
    revoked = any_api.platform.request("DELETE", f"/v1/keys/{key.id}")
    assert "token" not in revoked.json()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": "jobs:read"}, "scopes"),
        ({"expires_at": 1}, "expires_at"),
        ({"expires_at": 1.5e10 + 0.5}, "expires_at"),
        ({"name": "Not A Name"}, "name"),
        ({"token": "mine"}, "token"),
    ],
)
def test_keys_with_bad_fields_are_refused(any_api: Api, body: dict[str, object], param: str) -> None:
    tenant_id = any_api.platform.tenant_id
    assert error_of(any_api.platform.post(f"/v1/tenants/{tenant_id}/keys", body), 422)["param"] == param


def test_a_tenants_name_is_its_own(any_api: Api) -> None:
    assert any_api.platform.post("/v1/tenants", {"name": "acme"}).status_code == 201
    assert error_of(any_api.platform.post("/v1/tenants", {"name": "acme"}), 409)["code"] == "name_taken"
    names = [tenant["name"] for tenant in any_api.platform.get("/v1/tenants").json()["data"]]
    assert names == ["acme", "platform"]


@pytest.fixture
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseSettings:
    if request.param == "postgres":
        return DatabaseSettings(url=request.getfixturevalue("postgres_url"))
    return DatabaseSettings(url=f"sqlite:///{tmp_path}/new/armature.db")


both = pytest.mark.parametrize("empty_database", ["sqlite", "postgres"], indirect=True)


@pytest.mark.process
@both
def test_the_bootstrap_issues_one_key_and_can_be_run_again(empty_database: DatabaseSettings) -> None:
    environment = {**os.environ, "ARMATURE_DATABASE__URL": empty_database.url.get_secret_value()}
    command = [sys.executable, "-m", "armature_api.bootstrap"]
    first, second = (
        json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout) for _ in range(2)
    )
    assert parse_key(first["token"]) is not None
    assert second == {"tenant_id": None, "token": None}


@both
def test_of_racing_bootstraps_one_issues_the_key(empty_database: DatabaseSettings) -> None:
    settings = ApiServiceSettings(database=empty_database)
    with ThreadPoolExecutor(4) as threads:
        issued = [key for key in threads.map(lambda _: bootstrap(settings), range(4)) if key is not None]
    assert len(issued) == 1
    engine = make_engine(empty_database)
    with make_session_factory(engine)() as session:
        counts = [
            session.scalar(select(func.count()).select_from(table))
            for table in (Installation, Tenant, ApiKey, AuditEntry)
        ]
    engine.dispose()
    assert counts == [1, 1, 1, 1]
