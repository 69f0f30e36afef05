"""A job's log as server-sent events, for any number of listeners."""

from __future__ import annotations

import asyncio
import json

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from armature.db import jobs
from armature.db.job_requests import request_cancel
from armature.db.session import make_session_factory
from armature.db.transitions import Event
from armature_api.jobs.event_stream import JobEventStream
from tests.support.api import Api, checkpoint, error_of
from tests.support.jobs import add_job, add_tenant


def ids(stream: str) -> list[int]:
    """Read the numbers of a stream's events, and check that id and content agree."""
    frames = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in stream.split("\n\n") if frame]
    events = [frame for frame in frames if "data" in frame]
    assert all(int(frame["id"]) == json.loads(frame["data"])["seq"] for frame in events)
    return [int(frame["id"]) for frame in events]


def test_a_finished_jobs_stream_ends_and_resumes(any_api: Api) -> None:
    job_id = any_api.publish(any_api.platform.tenant_id, checkpoint()).job_id
    path = f"/v1/jobs/{job_id}/events?stream=true"
    whole = any_api.platform.get(path)
    assert (whole.status_code, whole.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert ids(whole.text) == [1, 2]
    assert ids(any_api.platform.get(path, headers={"Last-Event-ID": "1"}).text) == [2]
    assert ids(any_api.platform.get(f"{path}&after=2").text) == []
    assert error_of(any_api.platform.get(path, headers={"Last-Event-ID": "x"}), 422)["code"] == "invalid_request"
    assert error_of(any_api.tenant("stranger").get(path), 404)["code"] == "not_found"


def test_many_listeners_share_one_connection(engine: Engine, sessions: sessionmaker[Session]) -> None:
    tenant = add_tenant(sessions)
    job_id = add_job(sessions, tenant)
    news = [f"news {number}" for number in range(5)]

    def append(number: int) -> None:
        with sessions.begin() as session:
            jobs.append_event(session, job_id, Event(news[number]))

    def end() -> None:
        with sessions.begin() as session:
            request_cancel(session, tenant, job_id)

    async def listen(stream: JobEventStream) -> str:
        return b"".join([frame async for frame in stream.follow(job_id, 0)]).decode()

    async def play() -> list[str]:
        stream = JobEventStream(make_session_factory(engine, read_only=True), poll_seconds=0.02)
        listeners = [asyncio.create_task(listen(stream)) for _ in range(200)]
        for number in range(len(news)):
            await asyncio.to_thread(append, number)
            await asyncio.sleep(0.03)
        await asyncio.to_thread(end)
        received = await asyncio.gather(*listeners)
        assert engine.pool.checkedout() <= 1  # type: ignore[attr-defined]  # the poller's
        await stream.end()
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        return received

    received = asyncio.run(play())
    assert len(set(received)) == 1
    assert ids(received[0]) == [1, 2, 3, 4, 5, 6]


def test_silence_is_broken_by_comments(engine: Engine, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, add_tenant(sessions))

    async def play() -> list[bytes]:
        stream = JobEventStream(make_session_factory(engine, read_only=True), quiet_seconds=0.05)
        listener = stream.follow(job_id, 0)
        frames = [await anext(listener) for _ in range(3)]
        assert engine.pool.checkedout() <= 1  # type: ignore[attr-defined]  # the poller's
        await listener.aclose()  # type: ignore[attr-defined]
        await stream.end()
        return frames

    assert set(asyncio.run(play())) == {b": ping\n\n"}
