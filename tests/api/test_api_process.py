"""The API as a process: uvicorn, PostgreSQL or SQLite, a real broker, and clients that race each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import httpx
import openai
import pytest
from sqlalchemy import select

from armature.db.models import Job
from armature.db.session import make_engine, make_session_factory
from armature.settings import DatabaseSettings
from armature_api.bootstrap import bootstrap
from armature_api.settings import ApiServiceSettings
from tests.support.processes import reserve_port, stop, wait_until_ready
from tests.support.servers import RedisServer


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[bytes]
    client: httpx.Client
    token: str
    log: Path

    def raw(self, request: bytes, key: str | None = None) -> bytes:
        """Send a request line and headers as raw bytes and return the raw response."""
        head, _, body = request.partition(b"\r\n")
        headers = f"Host: x\r\nConnection: close\r\nAuthorization: Bearer {key or self.token}\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.client.base_url.port), timeout=10) as connection:
            connection.sendall(head + b"\r\n" + headers + body)
            return b"".join(iter(lambda: connection.recv(4096), b""))


@contextmanager
def serve(database: DatabaseSettings, folder: Path, redis_url: str) -> Iterator[Served]:
    first = bootstrap(ApiServiceSettings(database=database))
    assert first is not None
    log = folder / "api.log"

    port = reserve_port()
    environment = {
        **os.environ,
        "ARMATURE_DATABASE__URL": database.url.get_secret_value(),
        "ARMATURE_REDIS__URL": redis_url,
        "ARMATURE_STORE__PATH": str(folder / "store"),
        "ARMATURE_HTTP__PORT": str(port),
    }
    command = [sys.executable, "-m", "armature_api"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stderr=stderr, cwd=folder, start_new_session=True)
    bearer = {"Authorization": f"Bearer {first.token}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=60) as client:
            wait_until_ready(process, client, log)
            yield Served(process, client, first.token, log)
    finally:
        stop(process)


@pytest.fixture
def served(database: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer) -> Iterator[Served]:
    with serve(database, tmp_path, valkey_server.url) as running:
        yield running


SPEC = {"kind": "base_model.import", "name": "mine", "source": {"type": "hub", "repo_id": "org/name"}}


CROWD = 100
"""Concurrent requests: more than the API has threads, connections and session slots."""


@pytest.mark.bad_input(55)
def test_a_crowd_of_identical_posts_makes_one_job(served: Served, database: DatabaseSettings) -> None:
    everybody_is_here = Barrier(CROWD)

    def ask(method: str, path: str, **arguments: object) -> httpx.Response:
        everybody_is_here.wait()
        return served.client.request(method, path, **arguments)

    def post(_: int) -> httpx.Response:
        return ask("POST", "/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": "once"})

    with ThreadPoolExecutor(CROWD) as threads:
        answers = list(threads.map(post, range(CROWD)))
        assert {answer.status_code for answer in answers} == {202}, {a.text for a in answers if a.status_code != 202}
        (id,) = {answer.json()["id"] for answer in answers}
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        read = list(threads.map(lambda _: ask("GET", f"/v1/jobs/{id}"), range(CROWD)))
        assert {(answer.status_code, answer.json()["id"]) for answer in read} == {(200, id)}
    engine = make_engine(database)
    with make_session_factory(engine)() as session:
        (job,) = session.scalars(select(Job)).all()
    engine.dispose()
    assert job.last_event_seq == 1


def test_a_process_on_the_wire(sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer) -> None:
    with serve(sqlite_settings, tmp_path, valkey_server.url) as served:
        assert b" 400 " in status(served.raw(b"GET /v1/jobs HTTP/1.1\r\nX-Request-ID: a\x00b\r\n\r\n"))
        assert b" 405 " in status(served.raw(b"TRACE /v1/jobs HTTP/1.1\r\n\r\n"))
        too_large = b"POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
        assert b" 413 " in status(answer := served.raw(too_large))  # before a byte of the body was sent
        assert b'"code":"payload_too_large"' in answer
        assert served.client.get("/v1/jobs", headers={"X-Request-ID": "follow-me-1"}).status_code == 200
        coming = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000000\r\n\r\n"
        assert b" 401 " in status(
            served.raw(b"POST /v1/files HTTP/1.1\r\n" + coming, key="ak_nobodys")
        )  # nor here is the body read
        wrong = {"Authorization": "Bearer wrong-secret-value"}
        assert served.client.get("/v1/jobs", headers=wrong).status_code == 401

        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) in (0, -signal.SIGTERM)
        log = served.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert all(line["service"] == "api" for line in lines)
    assert any(line.get("request_id") == "follow-me-1" for line in lines)
    assert "Finished server process" in lines[-1]["event"]
    assert served.token not in log
    assert "wrong-secret-value" not in log


def test_streams_end_at_shutdown(sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer) -> None:
    with serve(sqlite_settings, tmp_path, valkey_server.url) as served:
        job = served.client.post("/v1/jobs", json={"spec": SPEC}).json()["id"]
        path, params = f"/v1/jobs/{job}/events", {"stream": "true"}
        with served.client.stream("GET", path, params=params) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "id: 1"
            served.process.send_signal(signal.SIGTERM)
            assert "data:" in "".join(lines)  # a clean end, no broken connection
        assert served.process.wait(15) in (0, -signal.SIGTERM)  # an open stream would use the whole grace period
        assert "Cancel" not in served.log.read_text()


def test_slow_uploads_delay_no_other_request(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ndataset\r\n--x\r\n'
    with serve(sqlite_settings, tmp_path, valkey_server.url) as served, ExitStack() as open_uploads:
        head = (
            "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            f"Authorization: Bearer {served.token}\r\nContent-Length: 100000\r\n\r\n"
        )
        for _ in range(CROWD):
            upload = socket.create_connection(("127.0.0.1", served.client.base_url.port), timeout=10)
            open_uploads.enter_context(upload)
            upload.sendall(head.encode() + part)
        assert served.client.get("/v1/files", timeout=10).json()["data"] == []
        assert served.client.post("/v1/jobs", json={"spec": SPEC}, timeout=10).status_code == 202


def status(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0]


def test_the_stock_openai_client_keeps_files(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    rows = b'{"prompt": "a", "completion": "b"}\n' * 3
    with serve(sqlite_settings, tmp_path, valkey_server.url) as served:
        url = str(served.client.base_url.join("/v1"))
        with openai.OpenAI(base_url=url, api_key=served.token, max_retries=0) as client:
            files = [client.files.create(file=(f"{n}.jsonl", rows), purpose="fine-tune") for n in range(3)]
            assert {(file.object, file.purpose, file.bytes, file.status) for file in files} == {
                ("file", "fine-tune", len(rows), "processed")
            }
            assert [file.id for file in client.files.list(limit=2)] == [file.id for file in reversed(files)]
            assert list(client.files.list(purpose="evals")) == []
            first = client.files.retrieve(files[0].id)
            assert (first.filename, first.model_extra and first.model_extra["rows"]) == ("0.jsonl", 3)
            assert client.files.content(first.id).content == rows
            gone = client.files.delete(first.id)
            assert (gone.id, gone.object, gone.deleted) == (first.id, "file", True)
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(first.id)
            bad = client.files.create(file=("bad.jsonl", rows + b"{}\n"), purpose="fine-tune")
            assert bad.status == "error"
            with pytest.raises(openai.UnprocessableEntityError):
                client.files.create(file=("x", rows), purpose="batch")


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """Read a process's peak memory in bytes."""
    (line,) = (line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


def test_memory_stays_flat_while_a_large_file_is_uploaded_and_read(
    sqlite_settings: DatabaseSettings, tmp_path: Path, valkey_server: RedisServer
) -> None:
    large, copies = tmp_path / "rows.jsonl", 20_000
    with large.open("w") as file:
        for number in range(copies):
            file.write(json.dumps({"prompt": f"{number} " + "x" * 4000, "completion": "y"}) + "\n")
    size = large.stat().st_size

    with serve(sqlite_settings, tmp_path, valkey_server.url) as served:

        def upload(path: Path) -> dict[str, object]:
            with path.open("rb") as file:
                answer = served.client.post("/v1/files", files={"file": file}, data={"purpose": "dataset"})
            assert answer.status_code == 201, answer.text
            return dict(answer.json())

        small = tmp_path / "small.jsonl"
        small.write_bytes(large.read_bytes()[:1_000_000].rpartition(b"\n")[0])
        upload(small)
        before = peak_memory(served.process)
        view = upload(large)
        assert (view["rows"], view["bytes"], view["status"]) == (copies, size, "processed")
        assert peak_memory(served.process) - before < size / 4
