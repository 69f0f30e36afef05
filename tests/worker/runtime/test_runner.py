"""Attempts at jobs: what each way to end does to the job, the store and the work directory."""

import stat
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from armature.contracts.artifacts import ArtifactRef, Producer, ReportMetadata
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import parse_spec
from armature.db import jobs
from armature.db.job_queue import expire_leases
from armature.db.job_requests import request_cancel, request_pause, resume
from armature.db.transitions import Lease
from armature.errors import InvalidDataset, NonFiniteLoss, StorageUnavailable
from armature.logging import configure_logging
from armature.settings import JobSettings, LogSettings
from armature.storage.artifacts import blob_key, fetch_artifact, publish_folder
from armature.storage.memory import MemoryArtifactStore
from armature_worker.context.ports import Interrupted, Output, RecipeResult
from armature_worker.runtime.resources import WorkerResources
from armature_worker.runtime.runner import execute
from armature_worker.settings import WorkerServiceSettings, WorkerSettings
from tests.support.jobs import add_job, add_tenant, artifacts, events, get_job, let_lease_run_out

SPEC = {"kind": "base_model.import", "name": "tiny", "source": {"type": "folder", "path": "/models/tiny"}}
REPORT = ReportMetadata(subject={}, metrics={"asr": 0.5})


class FlakyStore(MemoryArtifactStore):
    """Refuses writes below a prefix while ``down``."""

    down = ""

    def put_file(self, key, path):
        if self.down and self.down in key:
            raise StorageUnavailable("the object store does not answer")
        super().put_file(key, path)


@pytest.fixture
def database(sqlite_settings):
    """SQLite is enough here: the job protocol's own tests run on both databases."""
    return sqlite_settings


@pytest.fixture
def store():
    return FlakyStore()


@pytest.fixture
def tenant(sessions):
    return add_tenant(sessions)


@pytest.fixture
def resources(database, sessions, store, tmp_path):
    settings = WorkerServiceSettings(
        database=database,
        jobs=JobSettings(lease_seconds=2, retry_delay=0),
        worker=WorkerSettings(work_dir=tmp_path / "work", device="cpu"),
    )
    return WorkerResources(settings, sessions, store, is_stopping=lambda: False)


@pytest.fixture
def job_id(sessions, tenant):
    return add_job(sessions, tenant, spec=SPEC, request_id="req-7")


def run(resources, job_id, recipe):
    execute(job_id, replace(resources, load_recipe=lambda kind: recipe))
    return get_job(resources.sessions, job_id)


def report(context, text="fine"):
    folder = context.workdir / "report"
    folder.mkdir()
    (folder / "report.json").write_text(text)
    return Output("report", folder, REPORT)


def write_report(spec, context):
    return RecipeResult([report(context)])


def must_not_run(spec, context):
    raise AssertionError("ran")


def wait_for_check(context, seconds=10.0):
    """Report steps as a long recipe does, until the context stops it."""
    for step in range(int(seconds / 0.02)):
        context.progress("train", step, 1000)
        time.sleep(0.02)
    raise AssertionError("the recipe was not stopped")


# --- success ----------------------------------------------------------------------------------------------------------


def test_a_finished_job_has_its_artifact_and_leaves_no_files(resources, store, tenant, job_id, tmp_path):
    seen = {}

    def recipe(spec, context):
        seen["mode"] = stat.S_IMODE(context.workdir.parent.stat().st_mode)
        seen["spec"], seen["device"] = spec.name, context.device
        context.log("half way", data={"x": 1})
        context.progress("train", 1, 2, {"loss": 0.5})
        context.progress("train", 2, 2, {"loss": 0.25})
        context.progress("validate", 2, 2, {"accuracy": 1.0})
        return write_report(spec, context)

    job = run(resources, job_id, recipe)
    assert (job.state, job.attempt, job.error) == ("succeeded", 1, None)
    assert (job.phase, job.step, job.total_steps) == ("done", 1, 1)
    assert seen == {"mode": 0o700, "spec": "tiny", "device": "cpu"}
    [row] = artifacts(resources.sessions, job_id)
    manifest = fetch_artifact(store, ArtifactRef(digest=row.digest, manifest_key=row.manifest_key), tmp_path / "copy")
    assert (tmp_path / "copy/report.json").read_text() == "fine"
    assert manifest.metadata == REPORT
    assert manifest.producer.spec == parse_spec(SPEC).provenance()
    assert list((tmp_path / "work").iterdir()) == []
    log = [(event.type, event.message, event.data) for event in events(resources.sessions, job_id)]
    assert ("message", "half way", {"attempt": 1, "x": 1}) in log
    assert ("metrics", "train", {"attempt": 1, "step": 2, "loss": 0.25}) in log
    assert ("metrics", "validate", {"attempt": 1, "step": 2, "accuracy": 1.0}) in log
    assert log[-1][1] == "succeeded"


def test_inputs_arrive_verified_under_their_roles(resources, store, tenant, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.json").write_text("{}")
    producer = Producer(kind="test", spec={}, version="0")
    manifest, ref = publish_folder(store, tenant, source, metadata=REPORT, parents=[], producer=producer)
    key = blob_key(tenant, manifest.files[0].sha256)
    file = {"type": "file", "id": "f", "key": key, "sha256": manifest.files[0].sha256, "size": 2, "filename": "../x"}
    inputs = {
        "base_model": {"type": "artifact", "id": "art", "ref": ref.model_dump()},
        "files/config.json": file,
        "pairs": file | {"attribute": "wit"},
    }
    job_id = add_job(resources.sessions, tenant, spec=SPEC, inputs=inputs)

    def recipe(spec, context):
        assert context.artifacts["base_model"].digest == ref.digest
        assert (context.artifacts["base_model"].path / "a.json").read_text() == "{}"
        assert context.files["files/config.json"].read_text() == "{}"
        assert context.label_attributes == {"pairs": "wit"}
        return write_report(spec, context)

    assert run(resources, job_id, recipe).state == "succeeded"


def test_a_damaged_input_fails_the_job(resources, store, tenant):
    store.put_bytes("tenants/x/blobs/1", b"damaged")
    file = {"type": "file", "id": "f", "key": "tenants/x/blobs/1", "sha256": "0" * 64, "size": 2, "filename": "x"}
    job_id = add_job(resources.sessions, tenant, spec=SPEC, inputs={"data": file})
    job = run(resources, job_id, must_not_run)
    assert (job.state, job.error["code"]) == ("failed", "artifact_corrupt")


def test_a_second_message_for_the_job_does_nothing(resources, job_id):
    run(resources, job_id, write_report)
    job = run(resources, job_id, must_not_run)
    assert (job.state, job.fence) == ("succeeded", 1)
    execute("job_unknown", resources)


def test_the_same_work_twice_is_one_object_in_the_store(resources, store, tenant):
    first, second = (add_job(resources.sessions, tenant, spec=SPEC) for _ in range(2))
    run(resources, first, write_report)
    before = [found.key for found in store.list("")]
    run(resources, second, write_report)
    assert [found.key for found in store.list("")] == before
    [one], [other] = artifacts(resources.sessions, first), artifacts(resources.sessions, second)
    assert one.digest == other.digest
    assert one.id != other.id


# --- failure ----------------------------------------------------------------------------------------------------------


def raising(error):
    def recipe(spec, context):
        (context.workdir / "harmful.safetensors").write_text("secret")
        raise error

    return recipe


@pytest.mark.parametrize(
    ("error", "code", "status_type"),
    [
        (NonFiniteLoss("the loss is NaN at step 3"), "non_finite_loss", "server_error"),
        (InvalidDataset("line 7: no prompt", param="spec.harmful_pairs"), "invalid_dataset", "invalid_request_error"),
        (MemoryError(), "out_of_memory", "server_error"),
        (ZeroDivisionError("secret detail"), "internal_error", "server_error"),
    ],
)
def test_an_error_fails_the_job_with_its_object(resources, job_id, tmp_path, error, code, status_type):
    job = run(resources, job_id, raising(error))
    stored = ErrorObject.model_validate(job.error)
    assert (job.state, job.attempt, stored.code, stored.type) == ("failed", 1, code, status_type)
    assert stored.request_id == "req-7"
    assert "secret" not in stored.message
    assert stored.param == getattr(error, "param", None)
    assert list((tmp_path / "work").iterdir()) == []
    assert artifacts(resources.sessions, job_id) == []


def test_an_unexpected_error_is_logged_with_the_jobs_names(resources, job_id, capsys):
    configure_logging(LogSettings(format="json"), "worker")
    run(resources, job_id, raising(ZeroDivisionError("secret detail")))
    [line] = [line for line in capsys.readouterr().err.splitlines() if "unexpectedly" in line]
    for part in ("secret detail", "Traceback", job_id, '"attempt": 1', '"request_id": "req-7"'):
        assert part in line


def test_a_taken_model_name_fails_the_job_with_a_conflict(resources, tenant):
    def recipe(spec, context):
        return RecipeResult([replace(report(context), name="checkpoint")], register_as="tiny")

    first, second = (add_job(resources.sessions, tenant, spec=SPEC) for _ in range(2))
    assert run(resources, first, recipe).state == "succeeded"
    job = run(resources, second, recipe)
    assert (job.state, job.attempt, job.error["code"], job.error["param"]) == ("failed", 1, "name_taken", "spec.name")
    assert artifacts(resources.sessions, second) == []


def test_an_outage_is_retried_until_the_attempts_are_used_up(resources, store, job_id):
    store.down = "blobs"
    assert run(resources, job_id, write_report).state == "queued"
    assert run(resources, job_id, write_report).state == "queued"
    job = run(resources, job_id, write_report)
    assert (job.state, job.attempt, job.error["code"]) == ("failed", 3, "storage_unavailable")


def test_an_outage_costs_one_attempt(resources, store, job_id):
    store.down = "blobs"
    run(resources, job_id, write_report)
    store.down = ""
    job = run(resources, job_id, write_report)
    assert (job.state, job.attempt) == ("succeeded", 2)


def test_each_try_after_an_outage_waits_longer(resources, store, job_id):
    store.down = "blobs"
    slow = resources.settings.model_copy(update={"jobs": JobSettings(lease_seconds=2, retry_delay=100)})
    run(replace(resources, settings=slow), job_id, write_report)
    with resources.sessions.begin() as session:
        assert jobs.claim(session, job_id, "w", 3) is None


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_job_stops_within_a_step(resources, tenant, job_id, tmp_path):
    def recipe(spec, context):
        with resources.sessions.begin() as session:
            request_cancel(session, tenant, job_id)
        wait_for_check(context)

    job = run(resources, job_id, recipe)
    assert job.state == "cancelled"
    assert list((tmp_path / "work").iterdir()) == []
    assert events(resources.sessions, job_id)[-1].message == "cancelled"


def test_a_late_cancellation_wins_over_the_publish(resources, tenant, job_id):
    def recipe(spec, context):
        result = write_report(spec, context)
        with resources.sessions.begin() as session:
            request_cancel(session, tenant, job_id)
        return result

    job = run(resources, job_id, recipe)
    assert job.state == "cancelled"
    assert artifacts(resources.sessions, job_id) == []


def test_a_stopping_worker_refunds_the_attempt(resources, job_id):
    stopping = threading.Event()

    def recipe(spec, context):
        stopping.set()
        context.progress("train", 1, 2)

    job = run(replace(resources, is_stopping=stopping.is_set), job_id, recipe)
    assert (job.state, job.attempt, job.dispatched_at) == ("queued", 0, None)


def test_an_attempt_without_its_lease_changes_nothing(resources, job_id):
    def recipe(spec, context):
        let_lease_run_out(resources.sessions, job_id)
        with resources.sessions.begin() as session:
            expire_leases(session)
            assert jobs.claim(session, job_id, "successor", 30)
        wait_for_check(context)

    job = run(resources, job_id, recipe)
    assert (job.state, job.fence, job.worker) == ("running", 2, "successor")


def test_the_lease_is_kept_while_the_recipe_computes(resources, job_id):
    def recipe(spec, context):
        time.sleep(3)  # longer than the lease
        with resources.sessions.begin() as session:
            assert expire_leases(session) == []
        return write_report(spec, context)

    assert run(resources, job_id, recipe).state == "succeeded"


# --- outage of the database -------------------------------------------------------------------------------------------


class Switch:
    """A session factory with a switch; while it is off, the database is unavailable."""

    def __init__(self, sessions):
        self.sessions, self.on = sessions, True

    def begin(self):
        if not self.on:
            raise OperationalError("connect", {}, Exception("connection refused"))
        return self.sessions.begin()


def test_a_short_outage_of_the_database_is_waited_out(resources, job_id):
    switch = Switch(resources.sessions)

    def recipe(spec, context):
        context.log("before the outage")
        switch.on = False
        threading.Timer(1.5, lambda: setattr(switch, "on", True)).start()
        return write_report(spec, context)

    execute(job_id, replace(resources, sessions=switch, load_recipe=lambda kind: recipe))
    assert get_job(resources.sessions, job_id).state == "succeeded"
    assert "before the outage" in [event.message for event in events(resources.sessions, job_id)]


def test_an_outage_longer_than_the_lease_stops_the_recipe(resources, job_id):
    switch = Switch(resources.sessions)

    def recipe(spec, context):
        switch.on = False
        wait_for_check(context)

    began = time.monotonic()
    execute(job_id, replace(resources, sessions=switch, load_recipe=lambda kind: recipe))
    assert 1.5 < time.monotonic() - began < 8
    assert get_job(resources.sessions, job_id).state == "running"  # until the relay finds its lease expired


def test_a_claim_without_database_does_nothing(resources, job_id):
    switch = Switch(resources.sessions)
    switch.on = False
    execute(job_id, replace(resources, sessions=switch, load_recipe=lambda kind: must_not_run))
    assert get_job(resources.sessions, job_id).state == "queued"


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save(context, step, text):
    folder = context.workdir / f"save-{step}"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer/state.json").write_text(text)
    context.save_checkpoint(step, folder)


def checkpoint_keys(store):
    return [found.key for found in store.list("") if "/checkpoints/" in found.key]


def test_an_attempt_goes_on_from_the_newest_checkpoint(resources, store, tenant, job_id):
    def first(spec, context):
        assert context.load_checkpoint() is None
        save(context, 1, "one")
        save(context, 2, "two")
        assert [key.split("/")[5] for key in checkpoint_keys(store)] == ["1-2"]
        raise StorageUnavailable("later")

    def second(spec, context):
        found = context.load_checkpoint()
        assert (found.step, (found.path / "optimizer/state.json").read_text()) == (2, "two")
        save(context, 3, "three")
        return write_report(spec, context)

    run(resources, job_id, first)
    assert len(checkpoint_keys(store)) == 1
    job = run(resources, job_id, second)
    assert (job.state, job.checkpoint) == ("succeeded", None)
    assert checkpoint_keys(store) == []


def test_a_damaged_checkpoint_is_passed_over(resources, store, job_id):
    def first(spec, context):
        save(context, 1, "one")
        store.put_bytes(checkpoint_keys(store)[0], b"flipped")
        raise StorageUnavailable("later")

    def second(spec, context):
        assert context.load_checkpoint() is None
        return write_report(spec, context)

    run(resources, job_id, first)
    assert run(resources, job_id, second).state == "succeeded"
    assert any("checkpoint of step 1 ignored" in event.message for event in events(resources.sessions, job_id))


def test_an_outage_while_saving_costs_the_save_only(resources, store, job_id):
    def recipe(spec, context):
        save(context, 1, "one")
        store.down = "/checkpoints/"
        save(context, 2, "two")
        assert context.load_checkpoint().step == 1
        return write_report(spec, context)

    assert run(resources, job_id, recipe).state == "succeeded"


def test_a_successors_checkpoint_is_out_of_reach(resources, store, tenant, job_id):
    """The old attempt uploads after it has lost its lease; the successor's pointer and files stay."""

    def recipe(spec, context):
        save(context, 1, "one")
        let_lease_run_out(resources.sessions, job_id)
        with resources.sessions.begin() as session:
            expire_leases(session)
            successor = jobs.claim(session, job_id, "successor", 30)
            pointer = {**successor.checkpoint, "step": 9, "prefix": f"tenants/{tenant}/jobs/{job_id}/checkpoints/2-9/"}
            jobs.save_checkpoint(session, Lease(job_id, successor.fence), pointer)
        store.put_bytes(f"{pointer['prefix']}state.json", b"new")
        save(context, 2, "two")

    job = run(resources, job_id, recipe)
    assert (job.state, job.checkpoint["step"]) == ("running", 9)
    assert f"{job.checkpoint['prefix']}state.json" in checkpoint_keys(store)


# --- pausing ----------------------------------------------------------------------------------------------------------


def test_a_paused_job_saves_its_position_and_goes_on_from_there(resources, tenant):
    job_id = add_job(resources.sessions, tenant, kind="arm.train", spec=SPEC)

    def first(spec, context):
        with resources.sessions.begin() as session:
            request_pause(session, tenant, job_id)
        try:
            wait_for_check(context)
        except Interrupted:
            save(context, 5, "five")
            raise

    def second(spec, context):
        assert context.load_checkpoint().step == 5
        return write_report(spec, context)

    job = run(resources, job_id, first)
    assert (job.state, job.attempt, job.checkpoint["step"]) == ("paused", 0, 5)
    assert run(resources, job_id, must_not_run).state == "paused"
    with resources.sessions.begin() as session:
        resume(session, tenant, job_id)
    job = run(resources, job_id, second)
    assert (job.state, job.attempt, job.percent) == ("succeeded", 1, 100.0)


def test_a_late_pause_does_not_keep_a_job_from_succeeding(resources, tenant):
    job_id = add_job(resources.sessions, tenant, kind="arm.train", spec=SPEC)

    class Late(FlakyStore):
        def put_file(self, key, path):
            with resources.sessions.begin() as session:
                request_pause(session, tenant, job_id)
            super().put_file(key, path)

    assert run(replace(resources, store=Late()), job_id, write_report).state == "succeeded"


def test_a_retried_job_leaves_its_predecessors_checkpoint_alone(resources, store, tenant):
    def fails(spec, context):
        save(context, 3, "three")
        raise NonFiniteLoss("diverged")

    old = run(resources, add_job(resources.sessions, tenant, spec=SPEC), fails)
    assert old.state == "failed"
    retry = add_job(resources.sessions, tenant, spec=SPEC, retried_from=old.id, checkpoint=old.checkpoint)

    def goes_on(spec, context):
        assert context.load_checkpoint().step == 3
        save(context, 4, "four")
        return write_report(spec, context)

    assert run(resources, retry, goes_on).state == "succeeded"
    assert [key for key in checkpoint_keys(store) if f"/{old.id}/" in key]
    assert not [key for key in checkpoint_keys(store) if f"/{retry}/" in key]
