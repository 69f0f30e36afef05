"""Workers and their devices: one job each, jobs by queue, and replacement of a process after a device fault."""

import os
import shutil
import signal

import pytest

from armature.settings import DatabaseSettings
from tests.support.jobs import starts
from tests.support.platform import run_platform
from tests.support.processes import wait_until
from tests.support.servers import run_redis

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def platform(sqlite_template, tmp_path_factory):
    """A worker with two devices for the queue ``gpu``, and one for the queue ``cpu``."""
    folder = tmp_path_factory.mktemp("platform")
    shutil.copyfile(sqlite_template, folder / "armature.db")
    database = DatabaseSettings(url=f"sqlite:///{folder}/armature.db")
    with run_redis() as redis, run_platform(folder, database, redis) as platform:
        platform.max_tasks_per_child = 10
        platform.start_relay()
        common = {
            "ARMATURE_JOBS__RETRY_DELAY": "0.2",
            "ARMATURE_IMPORTS__ROOTS": f'["{folder}"]',
        }
        gpus = {"ARMATURE_WORKER__QUEUES": '["gpu"]', "ARMATURE_WORKER__DEVICE": "cuda:0,cuda:1"}
        platform.start_worker(**common, **gpus)
        platform.start_worker(**common, ARMATURE_WORKER__QUEUES='["cpu"]')
        yield platform


def held(platform, job_id) -> tuple[str, int]:
    """Wait for a job to hold a device; return the device and the process."""
    wait_until(lambda: platform.notes(job_id), what="the job to hold a device")
    _, device, process = platform.notes(job_id)[-1].split()
    return device, int(process)


def test_a_third_job_waits_for_one_of_two_devices(platform):
    (platform.folder / "let-go").unlink(missing_ok=True)
    running = [platform.submit("holding", queue="gpu") for _ in range(2)]
    assert {held(platform, job_id)[0] for job_id in running} == {"cuda:0", "cuda:1"}
    waiting, light = platform.submit("holding", queue="gpu"), platform.submit("quick", queue="cpu")
    assert platform.finish(light).state == "succeeded"  # the other queue does not wait for devices
    assert (platform.job(waiting).state, platform.notes(waiting)) == ("queued", [])
    (platform.folder / "let-go").touch()
    for job_id in (*running, waiting):
        job = platform.finish(job_id)
        assert (job.state, job.attempt, starts(platform.sessions, job_id)) == ("succeeded", 1, 1)


def test_the_device_of_a_killed_process_goes_to_the_next_job(platform):
    (platform.folder / "let-go").unlink(missing_ok=True)
    first, second = (platform.submit("holding", queue="gpu") for _ in range(2))
    devices = {job_id: held(platform, job_id) for job_id in (first, second)}
    waiting = platform.submit("holding", queue="gpu")
    os.kill(devices[first][1], signal.SIGKILL)
    # the waiting job's or the killed one's second attempt, if its lease runs out before a process is there again
    wait_until(lambda: platform.notes(waiting) or len(platform.notes(first)) == 2, what="the device to be taken again")
    following = waiting if platform.notes(waiting) else first
    assert held(platform, following)[0] == devices[first][0]
    (platform.folder / "let-go").touch()
    for job_id, attempts in ((first, 2), (second, 1), (waiting, 1)):
        job = platform.finish(job_id)
        assert (job.state, job.attempt) == ("succeeded", attempts)


def test_a_process_with_a_failed_device_is_replaced(platform):
    job_id = platform.submit("faulty", queue="gpu")
    job = platform.finish(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2)
    first, second = platform.notes(job_id)
    assert first != second
    wait_until(lambda: not os.path.exists(f"/proc/{first.split()[-1]}"), what="the first process to end")
