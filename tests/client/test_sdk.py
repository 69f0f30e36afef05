"""The SDK against the real API, synchronous and asynchronous, and against servers that fail."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armature import client as sdk
from armature.client import AsyncClient, Client
from armature.contracts.aliases import AliasGate, CanarySplit, GateRule
from armature.contracts.base import digest
from armature.contracts.jobs import JobEventView
from armature.contracts.profiles import ProfileVersionCreateRequest
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.errors import ArtifactCorrupt
from armature.storage.artifacts import blob_key
from tests.support.api import Api, Parts, listening
from tests.support.scripted_server import Answer, run_script
from tests.support.synchronous import TARGET, sources

LEXICON = {"attributes": {"empathy": ["kind"]}, "harmful": [], "refusals": []}


@pytest.mark.process
def test_the_synchronous_client_is_the_asynchronous_one_without_await() -> None:
    assert {path.name: path.read_text() for path in TARGET.glob("*.py")} == sources()


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with listening(api) as url, Client(url, api.platform.token) as client:
        yield client


def test_files_and_data_sets(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    uploaded = [
        client.files.create(path),
        client.files.create(path.read_bytes()),
        client.files.create(("rows.jsonl", io.BytesIO(path.read_bytes()))),
    ]
    assert {file.sha256 for file in uploaded} == {uploaded[0].sha256}
    assert client.files.content(uploaded[0].id) == path.read_bytes()
    assert [file.id for file in client.files.list(limit=2)] == [file.id for file in reversed(uploaded)]
    assert client.files.delete(uploaded[1].id).deleted
    for content in (path, path.read_bytes(), ("rows.jsonl", io.BytesIO(path.read_bytes()))):
        checked = client.datasets.check(content)
        assert (checked.form, checked.sample, checked.validation.errors) == ("prompt", [{"prompt": "hello"}], [])
    prompts = client.datasets.create("prompts", uploaded[0].id)
    assert client.datasets.retrieve(prompts.id).rows == 1
    lexicon = client.datasets.upload("lexicon", [LEXICON], "lexicon")
    assert {item.id for item in client.datasets.list()} == {prompts.id, lexicon.id}
    assert client.datasets.upload("pairs", [{"prompt": "a", "completion": "b"}], harmful=True).harmful
    assert not lexicon.harmful
    spec = EvaluationRunSpec(base_model="mdl_1", lexicon=lexicon.id, prompts=prompts.id, attributes=["empathy"])
    with pytest.raises(sdk.NotFoundError) as missing:
        client.jobs.create(spec)
    assert (missing.value.code, missing.value.error.param) == ("not_found", "spec.base_model")
    assert missing.value.request_id


def test_jobs_are_submitted_once_and_awaited(api: Api, client: Client) -> None:
    model, _ = api.base_model(api.platform.tenant_id)
    lexicon = client.datasets.upload("lexicon", [LEXICON], "lexicon")
    prompts = client.datasets.upload("prompts", [{"prompt": "hello"}], "prompt")
    spec = {"kind": "evaluation.run", "base_model": model, "lexicon": lexicon.id, "attributes": ["empathy"]}
    spec["prompts"] = prompts.id
    job = client.jobs.create(spec, metadata={"ticket": "7"}, idempotency_key="once")
    assert client.jobs.create(spec, metadata={"ticket": "7"}, idempotency_key="once").id == job.id
    assert (job.state, job.metadata) == ("queued", {"ticket": "7"})
    assert job._request_id
    more = [client.jobs.create(spec).id for _ in range(4)]
    assert {job.id, *more} <= {listed.id for listed in client.jobs.list(limit=2)}
    with pytest.raises(TimeoutError):
        client.jobs.wait(job.id, timeout=0)
    assert client.jobs.cancel(job.id).state == "cancelled"
    seen: list[str] = []
    with pytest.raises(sdk.JobFailed) as ended:
        client.jobs.wait(job.id, on_progress=lambda seen_job: seen.append(seen_job.state))
    assert (ended.value.job.id, seen) == (job.id, ["cancelled"])
    events = list(client.jobs.list_events(job.id, limit=1))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_profiles_and_aliases(api: Api, client: Client) -> None:
    parts = Parts(api, api.platform)
    assert client.profiles.ensure("care").id == client.profiles.retrieve("care").id
    first = client.profiles.create_version("care", ProfileVersionCreateRequest(**parts.body()))
    second = client.profiles.create_version("care", {"base_model": parts.model})
    assert [version.version for version in client.profiles.list_versions("care", limit=1)] == [2, 1]
    aliases = client.profiles.aliases
    assert aliases.move("care", first.version, if_version=0).version == 1
    with pytest.raises(sdk.ConflictError):
        aliases.move("care", second.version, if_version=2)
    assert aliases.move("care", 2, canary=CanarySplit(version=1, weight=0.5)).canary is not None
    assert aliases.roll_back("care", if_version=2).version == 1
    assert [move.version for move in aliases.history("care")] == [1, 2, 1]
    aliases.set_gate("care", AliasGate(rules=[GateRule(metric="asr", at_most=0.1)]))
    with pytest.raises(sdk.ConflictError) as refused:
        aliases.move("care", 2)
    assert refused.value.code == "gate_not_passed"
    aliases.remove_gate("care")
    assert client.base_models.move_alias("best", parts.model).base_model == parts.model
    assert [alias.alias for alias in client.base_models.list_aliases()] == ["best"]
    assert client.base_models.retrieve(parts.model).model_digest == digest("base")
    named = client.base_models.create("named", parts.base.id)
    assert client.base_models.retrieve(named.id).model_dump() == named.model_dump()


def test_artifacts_are_downloaded_whole_or_not_at_all(api: Api, client: Client, tmp_path: Path) -> None:
    parts = Parts(api, api.platform)
    manifest = client.artifacts.download(parts.vector.id, tmp_path / "vector")
    folder = tmp_path / "vector"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {file.path for file in manifest.files}
    assert client.artifacts.verify(parts.vector.id).ok
    assert [item.id for item in client.artifacts.list(kind="task_vector")] == [parts.vector.id]
    assert client.artifacts.lineage(parts.vector.id).root == parts.vector.digest
    with pytest.raises(sdk.ConflictError):
        client.artifacts.delete(parts.base.id)
    client.artifacts.delete(parts.arm.id)
    with pytest.raises(sdk.NotFoundError):
        client.artifacts.retrieve(parts.arm.id)
    first = manifest.files[0]
    api.resources.store.put_bytes(blob_key(api.platform.tenant_id, first.sha256), b"rotten")
    with pytest.raises((ArtifactCorrupt, sdk.InternalServerError)):
        client.with_options(max_retries=0).artifacts.download(parts.vector.id, tmp_path / "rotten")
    assert not [path for path in (tmp_path / "rotten").rglob("*") if path.is_file()]


def test_tenants_and_keys(api: Api, client: Client) -> None:
    team = client.tenants.ensure("team")
    assert client.tenants.ensure("team").id == team.id
    key = client.keys.create(team.id)
    with listening(api) as url, Client(url, key.token) as theirs:
        assert list(theirs.jobs.list()) == []
        with pytest.raises(sdk.PermissionDeniedError):
            theirs.tenants.create("more")
        client.keys.revoke(key.id)
        with pytest.raises(sdk.AuthenticationError):
            theirs.profiles.list().__iter__().__next__()


def test_the_asynchronous_client_does_the_same(api: Api) -> None:
    async def work(url: str) -> None:
        async with AsyncClient(url, api.platform.token) as client:
            dataset = await client.datasets.upload("prompts", [{"prompt": str(n)} for n in range(3)], "prompt")
            assert [item.id async for item in client.datasets.list()] == [dataset.id]
            await asyncio.gather(*(client.profiles.create(f"p{n}") for n in range(5)))
            names = [profile.name async for profile in client.profiles.list(limit=2)]
            assert sorted(names) == [f"p{n}" for n in range(5)]
            with pytest.raises(sdk.NotFoundError):
                await client.jobs.retrieve("job_1")
            assert (await client.tenants.ensure("platform")).name == "platform"

    with listening(api) as url:
        asyncio.run(work(url))


ENVELOPE = json.dumps({"error": {"message": "busy", "type": "unavailable_error", "code": "unavailable"}}).encode()
PROFILE = {"id": "prf_1", "name": "care", "description": "", "created_at": 1, "latest_version": 0, "aliases": {}}
DONE = Answer(body=json.dumps(PROFILE).encode(), headers={"x-request-id": "req_12345678"})
AGAIN = {"retry-after": "0"}


@pytest.mark.parametrize(
    "failure",
    [
        Answer(503, ENVELOPE, AGAIN),
        Answer(429, ENVELOPE, AGAIN),
        Answer(409, ENVELOPE, {"x-should-retry": "true", **AGAIN}),
    ],
    ids=["503", "429", "409 that says so"],
)
def test_retries_send_the_same_idempotency_key(failure: Answer) -> None:
    with run_script([failure, failure, DONE]) as server, Client(server.url, "ak") as client:
        assert client.profiles.create("care")._request_id == "req_12345678"
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_broken_connection_is_retried() -> None:
    with run_script([Answer(0), DONE]) as server, Client(server.url, "ak") as client:
        assert client.profiles.create("care").name == "care"
        assert [request.path for request in server.requests] == ["/v1/profiles"] * 2


def test_a_retried_upload_is_whole() -> None:
    with (
        run_script([Answer(503, ENVELOPE, AGAIN), Answer(400, ENVELOPE)]) as server,
        Client(server.url, "ak") as client,
        pytest.raises(sdk.BadRequestError),
    ):
        client.files.create(("rows.jsonl", io.BytesIO(b"x" * 1000)))
    assert [request.body.count(b"x" * 1000) for request in server.requests] == [1, 1]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(422, ENVELOPE), sdk.UnprocessableEntityError),
        (Answer(503, ENVELOPE, {"x-should-retry": "false"}), sdk.InternalServerError),
        (Answer(418, b"teapot"), sdk.APIStatusError),
    ],
)
def test_errors_that_a_retry_cannot_change_are_raised(answer: Answer, kind: type[Exception]) -> None:
    with run_script([answer]) as server, Client(server.url, "ak") as client, pytest.raises(kind):
        client.profiles.create("care")
    assert len(server.requests) == 1


def test_an_unreachable_platform_is_a_connection_error() -> None:
    with (
        run_script([Answer(0)]) as server,
        Client(server.url, "ak", max_retries=1) as client,
        pytest.raises(sdk.APIConnectionError),
    ):
        client.profiles.retrieve("care")
    assert len(server.requests) == 2


def _sse(*events: JobEventView) -> bytes:
    return b": ping\n\n" + b"".join(f"id: {e.seq}\ndata: {e.model_dump_json()}\n\n".encode() for e in events)


def test_a_broken_event_stream_resumes_after_its_last_event() -> None:
    events = [
        JobEventView(seq=seq, created_at=1, level="info", type="message", message=f"m{seq}", data={})
        for seq in range(1, 6)
    ]
    kind = {"content-type": "text/event-stream"}
    running, over = ({"state": state} for state in ("running", "succeeded"))

    def job(fields: dict[str, str]) -> Answer:
        return Answer(body=json.dumps({**JOB, **fields}).encode())

    script = [
        Answer(body=_sse(*events[:2]), headers=kind, cut=True),
        Answer(body=_sse(events[2]), headers=kind),
        job(running),
        Answer(body=_sse(events[3]), headers=kind),
        Answer(status=0),  # the platform that ended the stream restarts
        Answer(body=_sse(events[4]), headers=kind),
        job(over),
    ]
    with run_script(script) as server, Client(server.url, "ak", max_retries=0) as client:
        assert [event.seq for event in client.jobs.stream_events("job_1")] == [1, 2, 3, 4, 5]
    streams = [request for request in server.requests if "events" in request.path]
    assert [request.headers["last-event-id"] for request in streams] == ["0", "2", "3", "4"]


JOB: dict[str, Any] = {
    "id": "job_1",
    "kind": "arm.train",
    "state": "running",
    "phase": "train",
    "progress": {"percent": 1.0, "phase": "train", "step": 1, "total_steps": 2},
    "cancel_requested": False,
    "pause_requested": False,
    "queue_position": None,
    "shared": False,
    "attempt": 1,
    "max_attempts": 3,
    "retried_from": None,
    "created_at": 1,
    "started_at": 1,
    "finished_at": None,
    "estimated_finish": None,
    "error": None,
    "parents": [],
    "artifacts": [],
    "metadata": {},
    "spec": {},
}


def test_create_refuses_stream() -> None:
    with Client("http://127.0.0.1:1", "ak", max_retries=0) as client:
        with pytest.raises(TypeError, match="stream"):
            client.chat.completions.create(model="care", messages=[], stream=True)
        with pytest.raises(TypeError, match="stream"):
            client.completions.create(model="care", prompt="a", stream=True)


def test_unknown_states_and_fields_are_read() -> None:
    answer = Answer(body=json.dumps({**JOB, "state": "hibernating", "mood": "calm"}).encode())
    with run_script([answer]) as server, Client(server.url, "ak") as client:
        assert client.jobs.retrieve("job_1").state == "hibernating"


def test_the_environment_replaces_missing_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARMATURE_API_KEY", raising=False)
    with pytest.raises(ValueError, match="ARMATURE_API_KEY"):
        Client("http://127.0.0.1:1")
    with run_script([DONE]) as server:
        monkeypatch.setenv("ARMATURE_API_URL", f"{server.url}/v1/")
        monkeypatch.setenv("ARMATURE_API_KEY", "ak_secret")
        with Client() as client:
            client.profiles.retrieve("care")
    assert (server.requests[0].path, server.requests[0].headers["authorization"]) == (
        "/v1/profiles/care",
        "Bearer ak_secret",
    )


def test_a_slow_answer_is_a_timeout() -> None:
    def slow(_: object) -> Answer:
        time.sleep(1.0)
        return DONE

    with (
        run_script([slow]) as server,
        Client(server.url, "ak", timeout=0.2, max_retries=0) as client,
        pytest.raises(sdk.APITimeoutError),
    ):
        client.profiles.retrieve("care")
