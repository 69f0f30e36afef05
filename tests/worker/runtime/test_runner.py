"""Attempts at jobs: what success and failure do to the job, the store and the work directory."""

import stat
from dataclasses import replace

import pytest
from sqlalchemy import select

from armature.contracts.artifacts import ArtifactRef, Producer
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import parse_spec
from armature.db import jobs
from armature.db.job_requests import request_cancel
from armature.db.models import Dataset, File
from armature.errors import InvalidDataset, NonFiniteLoss, StorageRefused
from armature.logging import configure_logging
from armature.settings import JobSettings, LogSettings
from armature.storage.artifacts import blob_key, fetch_artifact, publish_folder
from armature_worker.context.ports import DatasetOutput, RecipeResult
from armature_worker.runtime.runner import execute
from tests.support.attempts import REPORT, SPEC, must_not_run, report, run, write_report
from tests.support.jobs import add_job, artifacts, events

pytestmark = pytest.mark.slow

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
        "pairs": file | {"attribute": "wit", "on_bad_rows": "skip"},
    }
    job_id = add_job(resources.sessions, tenant, spec=SPEC, inputs=inputs)

    def recipe(spec, context):
        assert context.artifacts["base_model"].digest == ref.digest
        assert (context.artifacts["base_model"].path / "a.json").read_text() == "{}"
        assert context.files["files/config.json"].read_text() == "{}"
        assert context.label_attributes == {"pairs": "wit"}
        assert context.bad_rows == {"files/config.json": "refuse", "pairs": "skip"}
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


def test_files_of_rows_become_data_sets_with_the_artifact(resources, store, tenant):
    def recipe(spec, context):
        output = report(context)
        rows = output.path / "rows.jsonl"
        rows.write_text('{"prompt": "a", "responses": ["b", "c"], "labels": {"calm": 0}}\n' * 2)
        return RecipeResult([output], datasets=[DatasetOutput("mine", rows)])

    job_id = add_job(resources.sessions, tenant, spec=SPEC)
    assert run(resources, job_id, recipe).state == "succeeded"
    (artifact,) = artifacts(resources.sessions, job_id)
    with resources.sessions() as session:
        (dataset,) = session.scalars(select(Dataset))
        file = session.get_one(File, dataset.file_id)
    assert (dataset.tenant_id, dataset.name, dataset.format, dataset.rows) == (tenant, "mine", "preference", 2)
    assert dataset.job_id == job_id
    assert (file.filename, file.scan["statistics"]["rows"]) == ("mine.jsonl", 2)
    assert file.sha256 in {part["sha256"] for part in artifact.manifest["files"]}  # stored once
    assert store.head(blob_key(tenant, file.sha256)).size == file.bytes


def test_a_cancelled_job_makes_no_data_set(resources, tenant):
    def recipe(spec, context):
        with resources.sessions.begin() as session:
            request_cancel(session, tenant, job_id)
        rows = context.workdir / "rows.jsonl"
        rows.write_text('{"prompt": "a", "responses": ["b", "c"], "labels": {"calm": 0}}\n')
        return RecipeResult([report(context)], datasets=[DatasetOutput("mine", rows)])

    job_id = add_job(resources.sessions, tenant, spec=SPEC)
    assert run(resources, job_id, recipe).state == "cancelled"
    with resources.sessions() as session:
        assert list(session.scalars(select(Dataset))) == []


def test_an_outage_is_retried_until_the_attempts_are_used_up(resources, store, job_id):
    store.down = "blobs"
    assert run(resources, job_id, write_report).state == "queued"
    assert run(resources, job_id, write_report).state == "queued"
    job = run(resources, job_id, write_report)
    assert (job.state, job.attempt, job.error["code"]) == ("failed", 3, "storage_unavailable")


def test_a_store_that_refuses_its_key_fails_the_job_at_once(resources, store, job_id):
    store.down, store.error = "blobs", StorageRefused
    job = run(resources, job_id, write_report)
    assert (job.state, job.attempt, job.error["code"]) == ("failed", 1, "storage_refused")


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
