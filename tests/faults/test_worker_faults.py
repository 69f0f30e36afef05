"""Workers that are killed, stopped or poisoned: no job is lost or published twice."""

import os
import signal
import time

import pytest

from armature.contracts.errors import ErrorObject
from armature.settings import DatabaseSettings
from armature.storage.local import LocalArtifactStore
from tests.support.jobs import artifacts, events, starts
from tests.support.platform import LEASE_SECONDS, run_platform
from tests.support.processes import wait_until
from tests.support.servers import run_redis
from tests.support.worker_recipes import STEPS

pytestmark = pytest.mark.faults

RESULT = str(sum(range(STEPS + 1)))


@pytest.fixture(scope="module")
def platform(postgres_server, postgres_template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("platform")
    with (
        postgres_server.database(postgres_template) as url,
        run_redis() as redis,
        run_platform(folder, DatabaseSettings(url=url), redis) as platform,
    ):
        platform.start_relay()
        platform.worker = platform.start_worker()
        yield platform


def began(platform, job_id) -> list[list[int]]:
    """List the first step, process and parent of each attempt."""
    return [[int(word) for word in line.split()[1:]] for line in platform.notes(job_id) if line.startswith("began")]


def assert_resumed_and_published_once(platform, job_id):
    """Check that every step ran, none before a checkpoint twice, and that there is one correct artifact."""
    job = platform.finish(job_id)
    assert (job.state, job.checkpoint) == ("succeeded", None)
    firsts = [attempt[0] for attempt in began(platform, job_id)]
    assert firsts[0] == 1
    assert all(later > 1 for later in firsts[1:])
    saved = [line for line in platform.notes(job_id) if line.startswith("saved")]
    assert {f"saved {step}" for step in range(1, STEPS + 1)} <= set(saved)
    assert len(saved) <= STEPS + len(firsts) - 1
    [row] = artifacts(platform.sessions, job_id)
    store = LocalArtifactStore(platform.folder / "store")
    [file] = row.manifest["files"]
    assert store.get_bytes(f"tenants/{platform.tenant}/blobs/{file['sha256']}").decode() == RESULT
    wait_until(lambda: not list(store.list(f"tenants/{platform.tenant}/jobs/")), what="the checkpoints' removal")
    events(platform.sessions, job_id)
    return firsts


def test_a_killed_process_of_the_pool(platform):
    job_id = platform.submit("training")
    platform.wait_for_note(job_id, "saved 5")
    [[_, process, _]] = began(platform, job_id)
    os.kill(process, signal.SIGKILL)
    firsts = assert_resumed_and_published_once(platform, job_id)
    assert len(firsts) == 2
    assert platform.job(job_id).attempt == 2
    assert [path for path in (platform.folder / "work").iterdir() if path.is_dir()] == []


def test_a_killed_worker(platform):
    """The orphaned process ends at once, so that the next worker gets its device."""
    job_id = platform.submit("training")
    platform.wait_for_note(job_id, "saved 5")
    [[_, process, parent]] = began(platform, job_id)
    assert parent == platform.worker.pid
    platform.worker.kill()
    platform.worker.wait()
    wait_until(lambda: not os.path.exists(f"/proc/{process}"), seconds=2, what="the orphan's end")
    [left] = [path for path in (platform.folder / "work").iterdir() if path.is_dir()]
    platform.worker = platform.start_worker()
    firsts = assert_resumed_and_published_once(platform, job_id)
    assert len(firsts) == 2
    assert not left.exists()


def test_a_stopping_worker_requeues_its_job_at_once(platform):
    job_id = platform.submit("training")
    platform.wait_for_note(job_id, "saved 5")
    platform.worker.send_signal(signal.SIGTERM)
    stopped = time.monotonic()
    wait_until(lambda: platform.job(job_id).state == "queued", what="the release")
    assert time.monotonic() - stopped < LEASE_SECONDS
    assert platform.job(job_id).attempt == 0
    assert platform.worker.wait(30) == 0
    platform.worker = platform.start_worker()
    firsts = assert_resumed_and_published_once(platform, job_id)
    assert len(firsts) == 2


def test_a_poisonous_job_fails_after_its_attempts(platform):
    poison, quick = platform.submit("poison", max_attempts=2), platform.submit("quick")
    job = platform.finish(poison)
    error = ErrorObject.model_validate(job.error)
    assert (job.state, error.code) == ("failed", "worker_lost")
    assert platform.notes(poison) == ["began", "began"]
    assert starts(platform.sessions, poison) == 2
    assert platform.finish(quick).state == "succeeded"


def test_the_relay_stops_cleanly(platform):
    relay = platform.processes[0]
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(10) == 0
