"""Kill parts of the running platform: jobs resume, finish, and are published once."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from armature.client import Client
from armature.contracts.jobs import JobView
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options
from tests.support import main_job
from tests.support.tiny_models import save_tiny_checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

FAST = {
    "ARMATURE_JOBS__LEASE_SECONDS": "3",
    "ARMATURE_JOBS__RESEND_AFTER": "2",
    "ARMATURE_JOBS__RELAY_INTERVAL": "0.2",
}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[EmbeddedPlatform]:
    with EmbeddedPlatform(Options(tmp_path / "data", 0, 0, 0, FAST)) as running:
        yield running


@pytest.fixture
def admin(platform: EmbeddedPlatform) -> Iterator[Client]:
    with Client(platform.api_url, platform.admin_key) as client:
        yield client


def wait_for(client: Client, job_id: str, reached: Callable[[JobView], bool], seconds: float = 90.0) -> JobView:
    deadline = time.monotonic() + seconds
    while not reached(job := client.jobs.retrieve(job_id)):
        assert time.monotonic() < deadline, f"job is {job.state} at {job.progress}"
        time.sleep(0.05)
    return job


def kill(platform: EmbeddedPlatform, name: str) -> None:
    assert platform.supervisor is not None
    os.kill(platform.supervisor.children[name].pid, signal.SIGKILL)


def prepare(admin: Client, tmp_path: Path) -> tuple[str, main_job.Datasets]:
    base_model = main_job.import_model(admin, save_tiny_checkpoint(tmp_path / "model"), "tiny").base_model_id
    assert base_model is not None
    return base_model, main_job.upload_datasets(admin)


def test_killed_worker_resumes_training(platform: EmbeddedPlatform, admin: Client, tmp_path: Path) -> None:
    base_model, data = prepare(admin, tmp_path)
    spec = main_job.arm_spec(base_model, None, data, steps=150)
    undisturbed = admin.jobs.wait(admin.jobs.create(spec).id, timeout=180)

    job_id = admin.jobs.create(spec).id
    wait_for(admin, job_id, lambda job: job.phase == "train" and job.progress.step >= 20)
    kill(platform, "worker")
    done = admin.jobs.wait(job_id, timeout=180)

    assert done.attempt == 2
    assert [artifact.name for artifact in done.artifacts] == ["arm"]
    assert main_job.output(done, "arm").digest == main_job.output(undisturbed, "arm").digest
    messages = [event.message for event in admin.jobs.list_events(job_id)]
    assert messages.count("succeeded") == 1
    assert any("resum" in message for message in messages), messages


def test_broker_starts_empty(platform: EmbeddedPlatform, admin: Client, tmp_path: Path) -> None:
    base_model, data = prepare(admin, tmp_path)
    busy = admin.jobs.create(main_job.arm_spec(base_model, None, data, steps=60)).id
    wait_for(admin, busy, lambda job: job.state == "running")
    queued = [admin.jobs.create(main_job.harm_vector_spec(base_model, data)).id for _ in range(3)]

    kill(platform, "valkey")
    shutil.rmtree(platform.data / "valkey")

    for job_id in [busy, *queued]:
        done = admin.jobs.wait(job_id, timeout=180)
        assert done.attempt == 1
        assert done.artifacts


def test_restart_keeps_everything(tmp_path: Path) -> None:
    options = Options(tmp_path / "data", 0, 0, 0, FAST)
    with EmbeddedPlatform(options) as platform, Client(platform.api_url, platform.admin_key) as admin:
        base_model, data = prepare(admin, tmp_path)
        job_id = admin.jobs.create(main_job.arm_spec(base_model, None, data, steps=400)).id
        wait_for(admin, job_id, lambda job: job.progress.step >= 4)
    with EmbeddedPlatform(options) as platform, Client(platform.api_url, platform.admin_key) as admin:
        done = admin.jobs.wait(job_id, timeout=180)
        assert main_job.output(done, "arm").kind == "adapter"
