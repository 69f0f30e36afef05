"""Admission before the claim: a job that waits for a device spends no attempt, one that can never fit fails."""

import io
import json

import pytest
import torch

from armature.datasets.scan import scan_rows
from armature.db import jobs
from armature.db.job_queue import due_for_dispatch
from armature.db.models import Artifact, File, Job
from armature.settings import JobSettings
from armature.storage.memory import MemoryArtifactStore
from armature_worker.host.devices import DeviceTable, Memory, Needs
from armature_worker.runtime.admission import needs_of
from armature_worker.runtime.resources import WorkerResources
from armature_worker.runtime.runner import execute
from armature_worker.settings import WorkerServiceSettings, WorkerSettings
from tests.support.attempts import must_not_run
from tests.support.jobs import add_job, events, get_job, publication
from tests.support.recipe_world import arm_spec, evaluation_spec, harm_spec

pytestmark = pytest.mark.slow

PARAMETERS = 1_000_000


@pytest.fixture
def base_model(sessions, tenant):
    """The inputs of a job on a base model of a million parameters."""
    return {"base_model": add_checkpoint(sessions, tenant, PARAMETERS)}


def add_checkpoint(sessions, tenant, parameters):
    """Add a checkpoint to the tables only; return it as a job's input."""
    made = publication(tenant)
    metadata = made.manifest.metadata.model_copy(update={"parameters": parameters})
    manifest = made.manifest.model_copy(update={"metadata": metadata})
    row = Artifact(
        tenant_id=tenant,
        job_id=add_job(sessions, tenant),
        name="checkpoint",
        kind="checkpoint",
        digest=made.ref.digest,
        manifest_key=made.ref.manifest_key,
        manifest=manifest.model_dump(mode="json"),
        bytes=9,
    )
    with sessions.begin() as session:
        session.add(row)
        session.flush()
        return {"type": "artifact", "id": row.id, "ref": made.ref.model_dump()}


def open_resources(database, sessions, tmp_path, recipe, **worker):
    settings = WorkerServiceSettings(
        database=database,
        jobs=JobSettings(lease_seconds=2, retry_delay=100),
        worker=WorkerSettings(work_dir=tmp_path / "work", **worker),
    )
    return WorkerResources(settings, sessions, MemoryArtifactStore(), lambda: False, load_recipe=lambda kind: recipe)


@pytest.mark.parametrize(("queue", "device"), [("gpu", "cuda:1"), ("cpu", "cpu")])
def test_jobs_of_the_cpu_queue_leave_the_gpus_alone(database, sessions, tmp_path, tenant, queue, device):
    seen = []

    def recipe(spec, context):
        seen.append(context.device)
        raise MemoryError

    resources = open_resources(database, sessions, tmp_path, recipe, device="cuda:0,cuda:1")
    job_id = add_job(sessions, tenant, queue=queue, spec=harm_spec())
    with resources.devices["gpu"].lease(Needs()):
        execute(job_id, resources)
    assert seen == [device]


def test_a_job_without_a_free_device_spends_no_attempt(database, sessions, tmp_path, tenant):
    resources = open_resources(database, sessions, tmp_path, must_not_run, device="cuda:0")
    job_id = add_job(sessions, tenant, queue="gpu", spec=harm_spec(), dispatched_at=1.0)
    with resources.devices["gpu"].lease(Needs()):
        execute(job_id, resources)
    job = get_job(sessions, job_id)
    assert (job.state, job.attempt, job.fence, job.dispatched_at) == ("queued", 0, 0, None)
    with sessions.begin() as session:  # the relay sends it again, and not before the delay is over
        assert due_for_dispatch(session, 0) == []
        assert jobs.claim(session, job_id, "w", 2) is None
    assert [event.message for event in events(sessions, job_id)] == ["waits for a device"]


def test_memory_counts_the_rows_that_a_file_has_and_not_those_it_might(sessions, tenant, base_model):
    """The scan of a file knows its longest row in characters: letters, for a vocabulary as small as this one."""
    rows = [{"prompt": "how to zorble?", "completion": "zorble " * size} for size in (1, 3)]
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    scan = scan_rows(io.BytesIO(data)).model_dump(mode="json")
    with sessions.begin() as session:
        session.add(
            File(tenant_id=tenant, filename="a", purpose="dataset", bytes=len(data), sha256="a" * 64, scan=scan)
        )
    spec = harm_spec(training={"method": "full", "micro_batch_size": 4})
    needs = {}
    for sha256 in ("a" * 64, "b" * 64):  # of the second file nothing is known
        file = {"type": "file", "id": "ds", "key": "k", "sha256": sha256, "size": 1, "filename": "a"}
        inputs = base_model | {"harmful_pairs": file}
        job_id = add_job(sessions, tenant, kind=spec["kind"], queue="gpu", spec=spec, inputs=inputs)
        with sessions() as session:
            needs[sha256[0]] = needs_of(session, session.get_one(Job, job_id)).bytes
    logits_of_a_token = needs["b"] - 20 * PARAMETERS
    assert logits_of_a_token % (4 * 512) == 0
    answer = len("zorble " * 3) + 1
    assert needs["a"] == 20 * PARAMETERS + 4 * answer * (logits_of_a_token // (4 * 512))


def test_a_job_that_waits_for_memory_says_so_once(database, sessions, tmp_path, tenant, base_model):
    free, total = 9 * PARAMETERS, 100 * PARAMETERS
    resources = open_resources(database, sessions, tmp_path, must_not_run, device="cpu")
    table = DeviceTable(("cpu",), tmp_path, lambda names: {"cpu": Memory(free, total)})
    resources.__dict__["devices"] = {"gpu": table}
    spec = harm_spec()
    job_id = add_job(sessions, tenant, kind=spec["kind"], queue="gpu", spec=spec, inputs=base_model)
    for _ in range(3):
        execute(job_id, resources)
        with sessions() as session:
            wait = jobs.waits_of(session, [job_id])[job_id]
        assert (wait.reason, wait.free_bytes) == ("memory", free)
        assert free < wait.needs_bytes < total
        assert "training." in wait.remedy
    told = events(sessions, job_id)
    assert [(event.level, event.message) for event in told] == [("warn", wait.message())]
    assert told[0].data["waiting_for"] == wait.model_dump()
    with sessions.begin() as session:
        assert jobs.defer(session, job_id, 0.0, wait.model_copy(update={"reason": "device"}))
    assert get_job(sessions, job_id).last_event_seq == 2
    with sessions.begin() as session:
        assert jobs.claim(session, job_id, "w", 2) is not None
    with sessions() as session:
        assert jobs.waits_of(session, [job_id]) == {}


@pytest.mark.parametrize("spec", [harm_spec(training={"method": "full"}), arm_spec()])
def test_a_job_that_can_never_fit_fails_with_both_sizes(database, sessions, tmp_path, tenant, base_model, spec):
    resources = open_resources(database, sessions, tmp_path, must_not_run, device="cpu", memory_bytes=3 * PARAMETERS)
    job_id = add_job(sessions, tenant, kind=spec["kind"], queue="gpu", spec=spec, inputs=base_model)
    execute(job_id, resources)
    job = get_job(sessions, job_id)
    assert (job.state, job.attempt, job.error["code"]) == ("failed", 1, "insufficient_memory")
    assert f"the worker has at most {3 * PARAMETERS}" in job.error["message"]
    assert "training." in job.error["message"]
    execute(job_id, resources)
    assert get_job(sessions, job_id).fence == 1


def test_an_evaluation_needs_room_for_the_model_that_its_arm_is_on(sessions, tenant, base_model):
    spec = evaluation_spec(arm="arm")
    both = base_model | {"arm_backbone": add_checkpoint(sessions, tenant, 1000)}
    needs = []
    for inputs in (base_model, both):
        job_id = add_job(sessions, tenant, kind=spec["kind"], queue="gpu", spec=spec, inputs=inputs)
        with sessions() as session:
            needs.append(needs_of(session, session.get_one(Job, job_id)).bytes)
    item, logits_of_a_stream = 4, 128 * 12
    assert needs[0] == item * PARAMETERS + 2 * logits_of_a_stream
    assert needs[1] == item * (PARAMETERS + 1000) + 3 * logits_of_a_stream


def test_models_that_are_loaded_in_turn_need_room_for_the_largest(sessions, tenant):
    spec = {
        "kind": "pairs.generate",
        "prompts": "d",
        "teachers": [{"type": "base_model", "base_model": "small"}, {"type": "base_model", "base_model": "large"}],
    }
    sizes = {"teacher_0": 1000, "teacher_1": PARAMETERS}
    inputs = {role: add_checkpoint(sessions, tenant, size) for role, size in sizes.items()}
    job_id = add_job(sessions, tenant, kind=spec["kind"], queue="gpu", spec=spec, inputs=inputs)
    with sessions() as session:
        assert needs_of(session, session.get_one(Job, job_id)).bytes == 4 * PARAMETERS + 64 * 12


def test_a_job_that_fits_runs(database, sessions, tmp_path, tenant, base_model):
    started = []

    def recipe(spec, context):
        started.append(context.device)
        raise MemoryError

    resources = open_resources(database, sessions, tmp_path, recipe, device="cuda:0", memory_bytes=1 << 34)
    job_id = add_job(sessions, tenant, queue="gpu", spec=harm_spec())
    execute(job_id, resources)
    assert started == ["cuda:0"]


# --- faults of the device ---------------------------------------------------------------------------------------------


def test_after_a_job_out_of_memory_the_next_one_runs(database, sessions, tmp_path, tenant):
    def greedy(spec, context):
        torch.empty(1 << 50)

    resources = open_resources(database, sessions, tmp_path, greedy, device="cpu")
    first, second = (add_job(sessions, tenant, queue="gpu", spec=harm_spec()) for _ in range(2))
    for job_id in (first, second):
        execute(job_id, resources)
        job = get_job(sessions, job_id)
        assert (job.state, job.attempt, job.error["code"]) == ("failed", 1, "out_of_memory")
        assert "bytes at the most" in job.error["message"]
    with resources.devices["gpu"].lease(Needs()):
        pass


def test_a_fault_that_sticks_to_the_device_retires_the_process(database, sessions, tmp_path, tenant):
    def faulty(spec, context):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    retired = []
    resources = open_resources(database, sessions, tmp_path, faulty, device="cpu")
    object.__setattr__(resources, "retire", lambda: retired.append(True))
    job_id = add_job(sessions, tenant, queue="gpu", spec=harm_spec(), max_attempts=2)
    execute(job_id, resources)
    assert (get_job(sessions, job_id).state, retired) == ("queued", [True])
