"""A job in two processes on a real worker: a killed one costs an attempt, and no process is left behind."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from armature.contracts.artifacts import ArtifactRef, Producer
from armature.db.job_requests import request_cancel
from armature.settings import DatabaseSettings
from armature.storage.artifacts import fetch_artifact, file_sha256, publish_folder
from armature.storage.local import LocalArtifactStore
from tests.support.jobs import add_job, artifacts, events
from tests.support.platform import Platform, run_platform
from tests.support.processes import wait_until
from tests.support.rank_jobs import adapter, load_adapter_tensors, training_spec
from tests.support.recipe_context import write_rows
from tests.support.recipe_world import DATA, World, tiny_world
from tests.support.servers import run_redis

pytestmark = pytest.mark.faults

STEPS = 80


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def platform(sqlite_template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("platform")
    shutil.copyfile(sqlite_template, folder / "armature.db")
    with (
        run_redis() as redis,
        run_platform(folder, DatabaseSettings(url=f"sqlite:///{folder}/armature.db"), redis) as platform,
    ):
        platform.max_tasks_per_child = 10
        platform.start_relay()
        platform.start_worker(ARMATURE_JOBS__RETRY_DELAY="0.2")
        yield platform


def submit(platform: Platform, world: World, **training) -> str:
    """Submit an ``arm.train`` in two processes, with its inputs in the platform's store."""
    store = LocalArtifactStore(platform.folder / "store")
    base = world.artifacts["base"]
    producer = Producer(kind="test", spec={}, version="0")
    _, ref = publish_folder(
        store, platform.tenant, base.path, metadata=base.manifest.metadata, parents=[], producer=producer
    )
    pairs = write_rows(platform.folder / "pairs.jsonl", DATA["pairs"])
    key = f"tenants/{platform.tenant}/files/pairs"
    store.put_file(key, pairs)
    inputs = {
        "base_model": {"type": "artifact", "id": "art_none", "ref": ref.model_dump()},
        "pairs": {
            "type": "file",
            "id": "ds_none",
            "key": key,
            "sha256": file_sha256(pairs),
            "size": pairs.stat().st_size,
            "filename": "pairs.jsonl",
        },
    }
    spec = training_spec(2, steps=STEPS, checkpoint_every=1, **training)
    return add_job(platform.sessions, platform.tenant, kind="arm.train", queue="gpu", spec=spec, inputs=inputs)


def processes(platform: Platform) -> list[int]:
    """List the ranks of this platform's worker, by process id."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"armature_worker.distributed\0" in command and str(platform.folder).encode() in environment:
            found.append(int(folder.name))
    return sorted(found)


def wait_for_checkpoint(platform: Platform, job_id: str) -> None:
    wait_until(lambda: platform.job(job_id).checkpoint, seconds=200, what="a checkpoint")


def test_a_killed_rank_costs_one_attempt(platform: Platform, world: World, tmp_path: Path) -> None:
    job_id = submit(platform, world)
    wait_for_checkpoint(platform, job_id)
    first = processes(platform)
    os.kill(first[1], signal.SIGKILL)
    wait_until(lambda: not set(first) & set(processes(platform)), what="the other process's end")
    job = platform.finish(job_id, seconds=200)
    assert (job.state, job.attempt) == ("succeeded", 2), job.error
    log = [event.message for event in events(platform.sessions, job_id)]
    assert "process 1 of 2 (counted from 0) was ended by SIGKILL" in log
    assert any(line.startswith("resumed after step") for line in log)
    [row] = artifacts(platform.sessions, job_id)
    store = LocalArtifactStore(platform.folder / "store")
    fetch_artifact(store, ArtifactRef(digest=row.digest, manifest_key=row.manifest_key), tmp_path / "arm")
    alone = adapter(world.run(training_spec(1, steps=STEPS)))
    for name, tensor in load_adapter_tensors(tmp_path / "arm").items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-3, rtol=1e-2)
    assert processes(platform) == []


def test_a_cancelled_job_ends_its_processes(platform: Platform, world: World) -> None:
    job_id = submit(platform, world)
    wait_for_checkpoint(platform, job_id)
    assert len(processes(platform)) == 2
    with platform.sessions.begin() as session:
        request_cancel(session, platform.tenant, job_id)
    assert platform.finish(job_id).state == "cancelled"
    assert processes(platform) == []
