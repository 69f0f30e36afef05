"""The relay sends, requeues, publishes and sweeps, and an outage stops one of its tasks only."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import insert, select, update
from structlog.testing import capture_logs

from armature.contracts.artifacts import Producer, ReportMetadata
from armature.contracts.serving import SNAPSHOT_KEY
from armature.db import jobs
from armature.db.job_requests import request_cancel
from armature.db.jobs import Publication
from armature.db.models import File, IdempotencyKey, Installation, Job
from armature.db.transitions import Lease
from armature.errors import StorageUnavailable
from armature.queue import count_messages
from armature.settings import JobSettings, RedisSettings, StoreSettings
from armature.storage.artifacts import ORPHAN_SECONDS, blob_key, publish_folder, put_blob
from armature.storage.job_checkpoints import checkpoints_prefix
from armature_api.deps import Resources
from armature_api.relay.relay import BATCH, Relay
from armature_api.settings import ApiServiceSettings
from tests.support.jobs import add_job, add_tenant, get_job, let_lease_run_out
from tests.support.processes import wait_until
from tests.support.servers import run_redis

pytestmark = pytest.mark.process

RESEND_AFTER = 60.0


@pytest.fixture(scope="module")
def broker():
    with run_redis() as server:
        yield server


@pytest.fixture
def resources(database, broker, tmp_path, sessions):
    settings = ApiServiceSettings(
        database=database,
        redis=RedisSettings(url=broker.url),
        store=StoreSettings(path=tmp_path / "store"),
        jobs=JobSettings(relay_interval=0.01, resend_after=RESEND_AFTER),
    )
    resources = Resources.open(settings)
    with sessions.begin() as session:
        session.add(Installation(id="here"))
    with resources.celery.connection_for_write() as connection:
        connection.default_channel.queue_declare(queue="cpu")
        connection.default_channel.queue_purge("cpu")
    yield resources
    resources.close()


@pytest.fixture
def relay(resources):
    return Relay(resources)


@pytest.fixture
def tenant(sessions):
    return add_tenant(sessions)


def waiting(resources):
    return count_messages(resources.celery, "cpu")


def make_messages_old(sessions):
    with sessions.begin() as session:
        session.execute(update(Job).values(dispatched_at=Job.dispatched_at - 2 * RESEND_AFTER))


def failures(logs):
    """Return level, task and whether there is a traceback, of each log line about a failed task."""
    return [(line["log_level"], line["task"], "exc_info" in line) for line in logs if "task" in line]


# --- dispatch ---------------------------------------------------------------------------------------------------------


def test_a_job_is_sent_once_while_its_message_waits(relay, resources, sessions, tenant):
    job_id = add_job(sessions, tenant)
    for _ in range(3):
        relay.dispatch()
    assert waiting(resources) == 1
    assert get_job(sessions, job_id).dispatched_at is not None
    make_messages_old(sessions)
    relay.dispatch()
    assert waiting(resources) == 1


def test_a_job_whose_message_was_lost_is_sent_again(relay, resources, sessions, tenant):
    add_job(sessions, tenant)
    relay.dispatch()
    with resources.celery.connection_for_write() as connection:
        connection.default_channel.queue_purge("cpu")
    relay.dispatch()
    assert waiting(resources) == 0
    make_messages_old(sessions)
    relay.dispatch()
    assert waiting(resources) == 1


def test_two_relays_drain_a_long_queue_without_duplicates(resources, sessions, tenant):
    row = {"tenant_id": tenant, "kind": "test.work", "queue": "cpu", "spec": {}, "inputs": {}, "max_attempts": 3}
    count = 2 * BATCH + 50
    with sessions.begin() as session:
        session.execute(insert(Job), [row for _ in range(count)])
    patient = resources.settings.model_copy(update={"jobs": JobSettings(relay_interval=3600.0)})
    relays = [Relay(replace(resources, settings=patient)) for _ in range(2)]
    stop = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(relay.run, stop) for relay in relays]
        wait_until(lambda: waiting(resources) >= count, what="messages")
        stop.set()
        for end in ends:
            end.result()
    assert waiting(resources) == count
    with sessions() as session:
        assert session.scalars(select(Job.id).where(Job.dispatched_at.is_(None))).all() == []


def test_running_finished_and_cancelled_jobs_are_not_sent(relay, resources, sessions, tenant):
    running, cancelled = add_job(sessions, tenant), add_job(sessions, tenant)
    with sessions.begin() as session:
        jobs.claim(session, running, "w", 30)
        request_cancel(session, tenant, cancelled)
    relay.dispatch()
    assert waiting(resources) == 0


def test_jobs_wait_out_an_outage_of_the_broker(relay, resources, broker, sessions, tenant):
    job_id = add_job(sessions, tenant)
    with broker.outage(), capture_logs() as logs:
        relay.do_round()
    assert failures(logs) == [("warning", "dispatch", False)], logs
    assert get_job(sessions, job_id).dispatched_at is None
    relay.do_round()
    assert get_job(sessions, job_id).dispatched_at is not None
    assert waiting(resources) == 1


# --- the other tasks --------------------------------------------------------------------------------------------------


def test_a_round_runs_every_task(relay, resources, sessions, tenant):
    lost, fresh = add_job(sessions, tenant), add_job(sessions, tenant)
    with sessions.begin() as session:
        jobs.claim(session, lost, "w", 30)
    let_lease_run_out(sessions, lost)
    relay.do_round()
    assert get_job(sessions, lost).state == "queued"
    assert get_job(sessions, lost).dispatched_at is not None
    assert get_job(sessions, fresh).dispatched_at is not None
    assert json.loads(resources.store.get_bytes(SNAPSHOT_KEY))["installation"] == "here"


def test_counting_messages_without_a_broker_is_an_outage_too(relay, resources, broker, sessions, tenant):
    add_job(sessions, tenant)
    relay.dispatch()
    make_messages_old(sessions)
    with broker.outage(), capture_logs() as logs:
        relay.do_round()
    assert failures(logs) == [("warning", "dispatch", False)], logs


def test_an_unexpected_error_is_logged_with_its_traceback(resources, sessions):
    class Faulty(Relay):
        def publish_snapshot(self):
            raise ZeroDivisionError

    relay = Faulty(resources)
    with capture_logs() as logs:
        relay.do_round()
        relay.do_round()
    assert failures(logs) == [("error", "publish_snapshot", True)]


def test_jobs_are_sent_during_an_outage_of_the_store(resources, sessions, tenant):
    class Down:
        def __getattr__(self, name):
            raise StorageUnavailable("the object store does not answer")

    job_id = add_job(sessions, tenant)
    relay = Relay(replace(resources, store=Down()))
    with capture_logs() as logs:
        relay.do_round()
        relay.do_round()
    assert failures(logs) == [("warning", task, False) for task in ("publish_snapshot", "sweep_when_due")]
    assert get_job(sessions, job_id).dispatched_at is not None


# --- the sweep --------------------------------------------------------------------------------------------------------


def age(folder):
    """Make every object old enough to be swept as an orphan."""
    past = time.time() - 2 * ORPHAN_SECONDS
    for path in folder.rglob("*"):
        os.utime(path, (past, past))


def test_the_sweep_takes_orphans_and_nothing_else(relay, resources, sessions, tenant, tmp_path):
    store = resources.store

    def write(name, text):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data.json").write_text(text)
        return folder

    report = ReportMetadata(subject={}, metrics={})
    options = {"metadata": report, "parents": [], "producer": Producer(kind="test", spec={}, version="0")}
    manifest, ref = publish_folder(store, tenant, write("published", "kept"), **options)
    _, orphan = publish_folder(store, tenant, write("crashed", "lost"), **options)
    upload = put_blob(store, tenant, write("upload", "uploaded") / "data.json")
    needed = put_blob(store, tenant, write("deleted", "a job's input, its file deleted") / "data.json")
    inputs = {"pairs": {"type": "file", "sha256": needed.sha256}}
    over, running = add_job(sessions, tenant), add_job(sessions, tenant, inputs=inputs)
    with sessions.begin() as session:
        session.add(File(tenant_id=tenant, filename="f", purpose="dataset", bytes=1, sha256=upload.sha256))
        fence = jobs.claim(session, over, "w", 30).fence
        assert jobs.publish(session, Lease(over, fence), [Publication("report", ref, manifest)])
        jobs.claim(session, running, "w", 30)
    for job_id in (over, running):
        store.put_bytes(f"{checkpoints_prefix(tenant, job_id)}1-1/state", b"x")
    age(tmp_path / "store")
    young = put_blob(store, tenant, write("young", "young") / "data.json")
    relay.sweep()
    assert {found.key for found in store.list("tenants/")} == {
        blob_key(tenant, manifest.files[0].sha256),
        ref.manifest_key,
        blob_key(tenant, upload.sha256),
        blob_key(tenant, needed.sha256),
        blob_key(tenant, young.sha256),
        f"{checkpoints_prefix(tenant, running)}1-1/state",
    }
    assert store.head(orphan.manifest_key) is None


def test_the_sweep_runs_once_per_interval(resources, sessions, tenant):
    sweeps = []

    class Counting(Relay):
        def sweep(self):
            sweeps.append(1)

    relay = Counting(resources)
    for _ in range(3):
        relay.do_round()
    assert sweeps == [1]


def test_a_failed_jobs_checkpoint_waits_for_a_retry(relay, resources, sessions, tenant):
    store = resources.store
    names = ("failed", "forgotten", "source", "retry")
    ids = {name: add_job(sessions, tenant) for name in names}
    prefixes = {name: f"{checkpoints_prefix(tenant, id)}1-1/" for name, id in ids.items()}
    prefixes["retry"] = prefixes["source"]  # the retry has saved nothing yet
    for name in ("failed", "forgotten", "source"):
        store.put_bytes(f"{prefixes[name]}state", b"x")
    with sessions.begin() as session:
        for name in names:
            pointer = {"step": 1, "prefix": prefixes[name], "files": []}
            session.execute(update(Job).where(Job.id == ids[name]).values(checkpoint=pointer))
        ended = {"state": "failed", "finished_at": time.time()}
        session.execute(update(Job).where(Job.id == ids["failed"]).values(ended))
        old = [ids["forgotten"], ids["source"]]
        session.execute(update(Job).where(Job.id.in_(old)).values(ended | {"finished_at": 0.0}))
    relay.sweep()
    kept = {found.key.removesuffix("state") for found in store.list("tenants/") if found.key.endswith("state")}
    assert kept == {prefixes["failed"], prefixes["source"]}
    assert get_job(sessions, ids["forgotten"]).checkpoint is None


def test_old_idempotency_keys_are_forgotten(relay, sessions, tenant):
    with sessions.begin() as session:
        for id, created_at in (("old", 0.0), ("new", time.time())):
            session.add(IdempotencyKey(tenant_id=tenant, id=id, request_digest="0", created_at=created_at))
    relay.sweep()
    with sessions() as session:
        assert list(session.scalars(select(IdempotencyKey.id))) == ["new"]
