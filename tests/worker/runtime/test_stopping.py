"""Attempts that end early: cancellation, shutdown, a lost lease, a pause, and outages of the database."""

import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from armature.db import jobs
from armature.db.job_queue import expire_leases
from armature.db.job_requests import request_cancel, request_pause, resume
from armature_worker.context.ports import Interrupted
from armature_worker.runtime.runner import execute
from tests.support.attempts import SPEC, FlakyStore, must_not_run, run, save, wait_for_check, write_report
from tests.support.jobs import add_job, artifacts, events, get_job, let_lease_run_out

pytestmark = pytest.mark.slow

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
