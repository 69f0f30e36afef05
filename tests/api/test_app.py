"""The app as a whole: commits before responses, health, downloads, metrics, and imports without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from armature.contracts.base import canonical_json
from armature.queue import count_messages
from armature.settings import DatabaseSettings, RedisSettings, StoreSettings
from armature.storage.artifacts import blob_key
from armature_api.app import create_app
from armature_api.settings import ApiServiceSettings
from tests.support.api import HTTP, Api, checkpoint, error_of, metrics, run_api
from tests.support.servers import RedisServer


@contextmanager
def failing_commits(api: Api, error: Exception) -> Iterator[None]:
    def fail(_: Session) -> None:
        raise error

    event.listen(api.resources.writers, "before_commit", fail)
    try:
        yield
    finally:
        event.remove(api.resources.writers, "before_commit", fail)


def test_a_failed_commit_is_a_503(any_api: Api) -> None:
    lost = OperationalError("COMMIT", None, Exception("the server closed the connection"))
    spec = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}
    with failing_commits(any_api, lost):
        answer = any_api.platform.post("/v1/jobs", {"spec": spec})
        assert error_of(answer, 503)["code"] == "unavailable"
        assert answer.headers["retry-after"]
        assert error_of(any_api.platform.post("/v1/profiles", {"name": "care"}), 503)
    assert any_api.platform.get("/v1/jobs").json()["data"] == []
    assert any_api.platform.get("/v1/profiles").json()["data"] == []


def test_a_job_whose_commit_fails_is_not_sent(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    spec = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}
    with run_api(sqlite_settings, tmp_path, RedisSettings(url=valkey_server.url)) as api:
        before = count_messages(api.resources.celery, "cpu")
        with failing_commits(api, OperationalError("COMMIT", None, Exception("lost"))):
            error_of(api.platform.post("/v1/jobs", {"spec": spec}), 503)
        assert count_messages(api.resources.celery, "cpu") == before
        assert api.platform.post("/v1/jobs", {"spec": spec}).status_code == 202
        assert count_messages(api.resources.celery, "cpu") == before + 1


def test_an_unexpected_error_hides_its_cause(api: Api) -> None:
    client = TestClient(api.client.app, raise_server_exceptions=False)
    with failing_commits(api, RuntimeError("a secret of the server")):
        headers = {"Authorization": f"Bearer {api.platform.token}", "X-Request-ID": "given-by-client"}
        answer = client.post("/v1/profiles", json={"name": "care"}, headers=headers)
    error = error_of(answer, 500)
    assert (error["code"], error["request_id"]) == ("internal_error", "given-by-client")
    assert "secret" not in answer.text


def test_health(any_api: Api) -> None:
    assert any_api.client.get("/healthz").json() == {"status": "ok"}
    assert any_api.client.get("/readyz").json() == {"status": "ok", "database": "ok", "store": "ok"}


def test_an_api_that_was_not_bootstrapped_is_alive_and_not_ready(
    sqlite_settings: DatabaseSettings, tmp_path: Path
) -> None:
    settings = ApiServiceSettings(database=sqlite_settings, store=StoreSettings(path=tmp_path / "store"))
    with TestClient(create_app(settings)) as client:
        assert client.get("/healthz").status_code == 200
        assert error_of(client.get("/readyz"), 503)["message"] == "not ready: database"


def test_an_unreachable_database_is_a_503(tmp_path: Path) -> None:
    database = DatabaseSettings(url=SecretStr("postgresql+psycopg://nobody:hidden@127.0.0.1:1/none"))
    settings = ApiServiceSettings(database=database, store=StoreSettings(path=tmp_path / "store"), http=HTTP)
    with TestClient(create_app(settings)) as client:
        answer = client.get("/v1/jobs", headers={"Authorization": "Bearer ak_x"})
        assert error_of(answer, 503)["code"] == "unavailable"
        assert "hidden" not in answer.text
        assert "database" in error_of(client.get("/readyz"), 503)["message"]
        assert "armature_http_requests_total" in metrics(client)
        assert "armature_jobs" not in metrics(client)


def test_two_apps_in_one_process_keep_their_metrics_apart(api: Api) -> None:
    with TestClient(create_app(api.resources.settings)) as other:
        for _ in range(3):
            api.client.get("/healthz")
        other.get("/healthz")
        line = 'armature_http_requests_total{method="GET",route="/healthz",status="200"}'
        assert f"{line} 3.0" in metrics(api.client)
        assert f"{line} 1.0" in metrics(other)


def test_metrics_name_routes_not_ids(api: Api) -> None:
    api.platform.get("/v1/jobs/job_very_secret")
    api.client.get("/no/such/route")
    text = metrics(api.client)
    assert 'route="/v1/jobs/{job_id}",status="404"' in text
    assert 'route="none",status="404"' in text
    assert "very_secret" not in text
    assert api.platform.tenant_id not in text


def test_artifact_files_are_downloaded_as_they_were_published(any_api: Api) -> None:
    key = any_api.tenant("acme")
    artifact = any_api.publish(key.tenant_id, checkpoint())
    manifest = key.get(f"/v1/artifacts/{artifact.id}/manifest").json()
    assert hashlib.sha256(canonical_json(manifest)).hexdigest() == artifact.digest
    assert [file["path"] for file in manifest["files"]] == ["config.json", "part/weights.bin"]
    for file in manifest["files"]:
        path = f"/v1/artifacts/{artifact.id}/files/{file['path']}"
        answer = key.get(path)
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
        assert answer.headers["content-type"] == "application/octet-stream"
        part = key.get(path, headers={"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, answer.content[2:6])
    for path in ("", "config.json/", "part", "../config.json", "%2e%2e/config.json", "config.json%00"):
        error_of(key.get(f"/v1/artifacts/{artifact.id}/files/{path}"), 404)


def test_a_damaged_artifact_is_not_served(api: Api) -> None:
    artifact = api.publish(api.platform.tenant_id, checkpoint())
    file = artifact.manifest["files"][0]
    api.resources.store.put_bytes(blob_key(api.platform.tenant_id, file["sha256"]), b"flipped")
    answer = api.platform.get(f"/v1/artifacts/{artifact.id}/files/{file['path']}")
    assert error_of(answer, 500)["code"] == "artifact_corrupt"


BLOCKED = ["torch", "transformers", "peft", "safetensors", "numpy", "tokenizers"]
WITHOUT_TORCH = f"""
import importlib, pkgutil, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import armature_api
from armature_api.app import create_app
from armature_api.settings import ApiServiceSettings
from armature.settings import StoreSettings
names = [module.name for module in pkgutil.walk_packages(armature_api.__path__, "armature_api.")]
for name in names:
    importlib.import_module(name)
store = StoreSettings(kind="s3", endpoint="127.0.0.1:1", access_key="a", secret_key="b")
create_app(ApiServiceSettings(store=store)).openapi()
print(len(names))
"""


@pytest.mark.process
def test_nothing_in_the_api_needs_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert int(done.stdout) > 20


def test_the_description_covers_every_route(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    described = [path for path in document["paths"] if path.startswith("/v1/")]
    assert len(described) > 20
    assert all(operation["summary"] and operation["description"] for operation in operations)
    assert all(
        "security" in document["paths"][path][method] for path in described for method in document["paths"][path]
    )
    assert "ErrorEnvelope" in json.dumps(document["paths"]["/v1/jobs"])


@pytest.mark.parametrize(
    "wanted", ["bytes=abc", "bytes=5-2", "bytes=99999999999999999999-", "bytes=0-1,9999-", "lines=1-2", "", "bytes=-0"]
)
def test_a_range_that_can_not_be_served_gets_the_whole_file(api: Api, wanted: str) -> None:
    key = api.tenant("acme")
    artifact = api.publish(key.tenant_id, checkpoint())
    path = f"/v1/artifacts/{artifact.id}/files/config.json"
    whole = key.get(path)
    assert whole.status_code == 200
    part = key.get(path, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, whole.content[1:4])
    answer = key.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert "content-range" not in answer.headers
