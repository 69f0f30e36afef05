"""What the broker does wrong: it delivers twice, and it forgets. On Valkey 9 and on Redis 6.2."""

import shutil
import signal

import pytest

from armature.queue import count_messages, send_job
from armature.settings import DatabaseSettings
from tests.support.jobs import artifacts, starts
from tests.support.platform import run_platform
from tests.support.processes import wait_until
from tests.support.servers import REDIS_EXECUTABLE, run_redis

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module", params=[None, REDIS_EXECUTABLE], ids=["valkey", "redis"])
def platform(request, sqlite_template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("platform")
    shutil.copyfile(sqlite_template, folder / "armature.db")
    database = DatabaseSettings(url=f"sqlite:///{folder}/armature.db")
    with run_redis(request.param) as redis, run_platform(folder, database, redis) as platform:
        platform.max_tasks_per_child = 10
        platform.resend_after = 1
        platform.start_relay()
        platform.start_worker()
        platform.start_worker()
        yield platform


def test_a_message_delivered_five_times_runs_the_job_once(platform):
    job_id = platform.submit("quick")
    for _ in range(5):
        send_job(platform.celery, job_id, "cpu")
    assert platform.finish(job_id).state == "succeeded"
    wait_until(lambda: count_messages(platform.celery, "cpu") == 0, what="the duplicates to be consumed")
    assert platform.notes(job_id) == [f"ran {job_id}"]
    assert (platform.job(job_id).fence, starts(platform.sessions, job_id)) == (1, 1)
    assert len(artifacts(platform.sessions, job_id)) == 1


def test_a_broker_that_comes_back_empty_loses_no_job(platform):
    workers = platform.processes[1:]
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    sent = [platform.submit("quick") for _ in range(3)]
    wait_until(lambda: all(platform.job(job_id).dispatched_at for job_id in sent), what="the messages to be sent")
    with platform.redis.outage():
        platform.redis.forget()
        unsent = platform.submit("quick")
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    for job_id in [*sent, unsent]:
        assert platform.finish(job_id).state == "succeeded"
        assert platform.notes(job_id) == [f"ran {job_id}"]
