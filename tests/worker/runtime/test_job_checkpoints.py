"""Checkpoints of jobs: resuming, damage, outages of the store, and fencing."""

import pytest

from armature.db import jobs
from armature.db.job_queue import expire_leases
from armature.db.transitions import Lease
from armature.errors import NonFiniteLoss, StorageUnavailable
from tests.support.attempts import SPEC, run, save, write_report
from tests.support.jobs import add_job, events, let_lease_run_out

pytestmark = pytest.mark.slow


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
