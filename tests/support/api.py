"""The API in the test's process on a real database and store, tenants with keys, and artifacts published for real."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi.testclient import TestClient
from pydantic import SecretStr

from armature.contracts.artifacts import (
    AdapterMetadata,
    ArtifactMetadata,
    Backbone,
    Canary,
    CheckpointMetadata,
    Parent,
    Producer,
    TaskVectorMetadata,
)
from armature.contracts.base import digest
from armature.contracts.tenants import TENANT_SCOPES, ApiKeyCreated
from armature.db import jobs
from armature.db.models import Artifact
from armature.db.transitions import Lease
from armature.settings import DatabaseSettings, HttpSettings, RedisSettings, StoreSettings
from armature.storage.artifacts import publish_folder
from armature_api.__main__ import Server
from armature_api.app import create_app
from armature_api.bootstrap import bootstrap
from armature_api.deps import Resources
from armature_api.settings import ApiServiceSettings
from tests.support.jobs import add_job, artifacts
from tests.support.processes import wait_until

NO_BROKER = RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"))
HTTP = HttpSettings(metrics_token=SecretStr("tests-scrape-with-this"))
_numbers = itertools.count()


@dataclass(frozen=True)
class Key:
    """An API key in use."""

    client: TestClient
    tenant_id: str
    token: str = field(repr=False)

    def request(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.token}", **arguments.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx2.Response:
        return self.request("GET", path, **arguments)

    def post(self, path: str, json: Any = None, **arguments: Any) -> httpx2.Response:
        return self.request("POST", path, json=json, **arguments)

    def upload(
        self, content: bytes, purpose: str = "dataset", filename: str = "rows.jsonl", **fields: str
    ) -> httpx2.Response:
        return self.request(
            "POST", "/v1/files", files={"file": (filename, content)}, data={"purpose": purpose, **fields}
        )

    def dataset(self, format: str, rows: Sequence[dict[str, Any]]) -> str:
        """The id of a data set with these rows."""
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file_id = self.upload(content).json()["id"]
        answer = self.post(
            "/v1/datasets", {"name": f"{format.replace('_', '-')}-rows", "file_id": file_id, "format": format}
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]


@dataclass(frozen=True)
class Api:
    """A running API with its first key, which has every scope."""

    client: TestClient
    resources: Resources
    platform: Key
    folder: Path

    def tenant(self, name: str, *scopes: str) -> Key:
        """A new tenant with one key; by default with all that a tenant may do."""
        tenant_id = self.platform.post("/v1/tenants", {"name": name}).json()["id"]
        return self.key(tenant_id, *scopes)

    def key(self, tenant_id: str, *scopes: str) -> Key:
        """Another key of a tenant."""
        body = {"scopes": list(scopes or (*TENANT_SCOPES, "harmful:read", "harmful:write"))}
        answer = self.platform.post(f"/v1/tenants/{tenant_id}/keys", body)
        assert answer.status_code == 201, answer.text
        return Key(self.client, tenant_id, answer.json()["token"])

    def publish(
        self,
        tenant_id: str,
        metadata: ArtifactMetadata,
        *,
        shared: bool = False,
        register_as: str | None = None,
        spec: dict[str, Any] | None = None,
        parents: Sequence[Parent] = (),
    ) -> Artifact:
        """What a worker does: blobs and manifest into the store, rows through the job protocol."""
        writers, name = self.resources.writers, "checkpoint" if metadata.type == "checkpoint" else metadata.type
        folder = self.folder / f"outputs-{next(_numbers)}"
        (folder / "part").mkdir(parents=True)
        (folder / "config.json").write_text(metadata.model_dump_json())
        (folder / "part" / "weights.bin").write_bytes(digest(metadata.model_dump(mode="json")).encode() * 10)
        manifest, ref = publish_folder(
            self.resources.store,
            tenant_id,
            folder,
            metadata=metadata,
            parents=list(parents),
            producer=Producer(kind="test.work", spec=spec or {}, version="0"),
        )
        job_id = add_job(writers, tenant_id, shared=shared)
        with writers.begin() as session:
            job = jobs.claim(session, job_id, "worker", 60)
            assert job is not None
            lease = Lease(job_id, job.fence)
            assert jobs.publish(session, lease, [jobs.Publication(name, ref, manifest)], register_as)
        return artifacts(writers, job_id)[0]

    def base_model(self, tenant_id: str, name: str = "base", *, shared: bool = False) -> tuple[str, Artifact]:
        """(id of the base model, its checkpoint)."""
        artifact = self.publish(tenant_id, checkpoint(name), shared=shared, register_as=name)
        reader = self.key(tenant_id, "artifacts:read")
        models = {model["name"]: model["id"] for model in reader.get("/v1/base_models").json()["data"]}
        return models[name], artifact


class Parts:
    """A base model, a harm vector of it, an ARM trained on both, and the empty profile ``care``."""

    def __init__(self, api: Api, key: Key) -> None:
        self.model, self.base = api.base_model(key.tenant_id)
        self.vector = api.publish(key.tenant_id, task_vector())
        self.arm = api.publish(key.tenant_id, adapter(harm_vector=self.vector.digest, harm_scale=1.5))
        key.post("/v1/profiles", {"name": "care", "description": "for the helpline"})

    def body(self, **more: Any) -> dict[str, Any]:
        return {"base_model": self.model, "harm_vector": self.vector.id, "harm_scale": 1.5, "arm": self.arm.id, **more}


def checkpoint(name: str = "base", tokenizer: str = "tokenizer", vocabulary: str | None = None) -> CheckpointMetadata:
    return CheckpointMetadata(
        model_digest=digest(name),
        tokenizer_digest=digest(tokenizer),
        weights_digest=digest(["weights", name]),
        architecture="LlamaForCausalLM",
        parameters=1000,
        dtype="float32",
        vocab_size=100,
        context_length=256,
        chat_template=False,
        tokens_digest=None if vocabulary is None else digest(vocabulary),
        hidden_size=32,
        layers=2,
    )


def task_vector(base: str = "base") -> TaskVectorMetadata:
    return TaskVectorMetadata(
        base_model_digest=digest(base),
        rule="global",
        density=0.1,
        kept=10,
        total=100,
        norm=1.0,
        dense_norm=2.0,
        tensors=3,
    )


def adapter(
    base: str = "base",
    *,
    tokenizer: str = "tokenizer",
    harm_vector: str | None = None,
    harm_scale: float = 0.0,
    attributes: Sequence[str] = ("empathy", "truthfulness"),
) -> AdapterMetadata:
    return AdapterMetadata(
        attributes=list(attributes),
        rank_shared=4,
        rank_conditioned=4,
        alpha=8.0,
        loss_form="reference",
        beta=dict.fromkeys(attributes, 2.0),
        backbone=Backbone(
            model_digest=digest(base),
            tokenizer_digest=digest(tokenizer),
            harm_vector_digest=harm_vector,
            harm_scale=harm_scale,
        ),
        canary=Canary(token_ids=[1], preference={}, log_probs=[-1.0], top_token_ids=[1], base_log_probs=[-2.0]),
        parameters=10,
    )


def metrics(client: TestClient) -> str:
    """What Prometheus would read."""
    token = HTTP.metrics_token.get_secret_value()
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer.text


@contextmanager
def run_api(
    database: DatabaseSettings,
    folder: Path,
    redis: RedisSettings = NO_BROKER,
    store: StoreSettings | None = None,
    first: ApiKeyCreated | None = None,
) -> Iterator[Api]:
    """The app on a database, with a local store below ``folder`` unless another is given.

    ``first`` is the key of a database on which the bootstrap has run; on any other it runs now.
    """
    store = store or StoreSettings(path=folder / "store")
    settings = ApiServiceSettings(database=database, redis=redis, store=store, http=HTTP)
    first = first or bootstrap(settings)
    assert first is not None
    app = create_app(settings)
    with TestClient(app) as client:
        yield Api(client, app.state.resources, Key(client, first.tenant_id, first.token), folder)


@pytest.fixture(scope="session")
def installed(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ApiKeyCreated]:
    """A SQLite file on which the bootstrap has run, and the key that it issued."""
    path = tmp_path_factory.mktemp("installed") / "template.db"
    shutil.copyfile(sqlite_template, path)
    first = bootstrap(ApiServiceSettings(database=DatabaseSettings(url=f"sqlite:///{path}")))
    assert first is not None
    return path, first


@pytest.fixture
def api(installed: tuple[Path, ApiKeyCreated], tmp_path: Path) -> Iterator[Api]:
    """On SQLite, a copy of what the bootstrap makes."""
    template, first = installed
    path = tmp_path / "armature.db"
    shutil.copyfile(template, path)
    with run_api(DatabaseSettings(url=f"sqlite:///{path}"), tmp_path, first=first) as running:
        yield running


@pytest.fixture
def any_api(database: DatabaseSettings, tmp_path: Path) -> Iterator[Api]:
    """Once on SQLite and once on PostgreSQL."""
    with run_api(database, tmp_path) as running:
        yield running


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object of an answer that must have a status; the envelope is checked on the way."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


@contextmanager
def listening(api: Api) -> Iterator[str]:
    """The same app on a port of this machine, for clients that speak HTTP; its URL."""
    config = uvicorn.Config(api.client.app, port=0, lifespan="off", log_config=None)
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
