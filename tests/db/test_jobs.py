"""The job protocol, step by step, on both databases."""

import pytest
from sqlalchemy import func, select, update

from armature.contracts.errors import ErrorObject
from armature.db import job_queue, job_requests, jobs
from armature.db.jobs import Position
from armature.db.models import BaseModel, Job
from armature.db.transitions import Event, Lease
from armature.errors import Conflict, InvalidTransition, JobAlreadyFinished, NotFound
from tests.support.jobs import (
    add_job,
    add_tenant,
    artifacts,
    events,
    get_job,
    let_lease_run_out,
    publication,
    states,
)

LEASE = 30.0
ERROR = ErrorObject(message="no good", type="server_error", code="non_finite_loss")


@pytest.fixture
def tenant(sessions):
    return add_tenant(sessions)


@pytest.fixture
def job_id(sessions, tenant):
    return add_job(sessions, tenant)


def claim(sessions, job_id, worker="w1"):
    with sessions.begin() as session:
        job = jobs.claim(session, job_id, worker, LEASE)
        return Lease(job.id, job.fence) if job else None


def step(sessions, function, *args, **options):
    with sessions.begin() as session:
        return function(session, *args, **options)


# --- claim and heartbeat ----------------------------------------------------------------------------------------------


def test_a_claim_starts_the_job_and_a_second_one_finds_nothing(sessions, job_id):
    lease = claim(sessions, job_id)
    job = get_job(sessions, job_id)
    assert (job.state, job.fence, job.attempt, job.worker) == ("running", 1, 1, "w1")
    assert job.started_at is not None
    assert lease == Lease(job_id, 1)
    assert claim(sessions, job_id, "w2") is None
    assert claim(sessions, "job_unknown") is None
    assert get_job(sessions, job_id).worker == "w1"


def test_a_heartbeat_renews_the_lease_and_carries_progress_and_events(sessions, job_id):
    lease = claim(sessions, job_id)
    let_lease_run_out(sessions, job_id)
    news = [Event("halfway"), Event("loss", type="metrics", data={"loss": 0.5})]
    progress = Position("train", step=5, total_steps=10)
    assert step(sessions, jobs.heartbeat, lease, LEASE, progress, news) == "running"
    job = get_job(sessions, job_id)
    assert (job.phase, job.step, job.total_steps) == ("train", 5, 10)
    assert step(sessions, job_queue.expire_leases) == []
    assert [(event.message, event.data) for event in events(sessions, job_id)][1:] == [
        ("halfway", {"attempt": 1}),
        ("loss", {"attempt": 1, "loss": 0.5}),
    ]


def test_a_heartbeat_without_news_keeps_the_progress(sessions, job_id):
    lease = claim(sessions, job_id)
    step(sessions, jobs.heartbeat, lease, LEASE, Position("train", step=5, total_steps=10))
    step(sessions, jobs.heartbeat, lease, LEASE)
    assert get_job(sessions, job_id).step == 5


def test_a_worker_without_the_lease_can_change_nothing(sessions, tenant, job_id):
    old = claim(sessions, job_id)
    let_lease_run_out(sessions, job_id)
    step(sessions, job_queue.expire_leases)
    new = claim(sessions, job_id, "w2")
    before = get_job(sessions, job_id)
    assert step(sessions, jobs.heartbeat, old, LEASE, Position("train", step=99), [Event("from the grave")]) == "lost"
    assert not step(sessions, jobs.save_checkpoint, old, {"step": 99})
    assert not step(sessions, jobs.publish, old, [publication(tenant)])
    assert not step(sessions, jobs.fail, old, ERROR)
    assert not step(sessions, jobs.release, old, "shutdown")
    assert not step(sessions, jobs.finish_cancelled, old)
    after = get_job(sessions, job_id)
    assert {c.key: getattr(before, c.key) for c in Job.__table__.c if hasattr(Job, c.key)} == {
        c.key: getattr(after, c.key) for c in Job.__table__.c if hasattr(Job, c.key)
    }
    assert artifacts(sessions, job_id) == []
    assert step(sessions, jobs.publish, new, [publication(tenant)])


# --- endings ----------------------------------------------------------------------------------------------------------


def test_publishing_succeeds_with_the_artifacts_and_the_model_in_one_step(sessions, tenant):
    job_id = add_job(sessions, tenant, shared=True)
    lease = claim(sessions, job_id)
    assert step(sessions, jobs.publish, lease, [publication(tenant), publication(tenant, "report")], "llama")
    job = get_job(sessions, job_id)
    assert (job.state, job.lease_until) == ("succeeded", None)
    assert job.finished_at is not None
    rows = {row.name: row for row in artifacts(sessions, job_id)}
    assert set(rows) == {"checkpoint", "report"}
    assert all(row.shared and row.bytes == 9 and row.tenant_id == tenant for row in rows.values())
    with sessions() as session:
        model = session.scalars(select(BaseModel)).one()
    assert (model.id, model.name, model.artifact_id, model.shared) == (
        job.base_model_id,
        "llama",
        rows["checkpoint"].id,
        True,
    )
    assert not step(sessions, jobs.publish, lease, [publication(tenant)])


def test_a_taken_model_name_is_a_conflict_that_changes_nothing(sessions, tenant):
    first, second = add_job(sessions, tenant), add_job(sessions, tenant)
    step(sessions, jobs.publish, claim(sessions, first), [publication(tenant)], "llama")
    lease = claim(sessions, second)
    with pytest.raises(Conflict, match="llama"):
        step(sessions, jobs.publish, lease, [publication(tenant)], "llama")
    assert get_job(sessions, second).state == "running"
    assert artifacts(sessions, second) == []
    stranger = add_tenant(sessions, "other")
    theirs = add_job(sessions, stranger)
    assert step(sessions, jobs.publish, claim(sessions, theirs), [publication(stranger)], "llama")


def test_a_failure_stores_its_error_object(sessions, job_id):
    assert step(sessions, jobs.fail, claim(sessions, job_id), ERROR)
    job = get_job(sessions, job_id)
    assert job.state == "failed"
    assert ErrorObject.model_validate(job.error) == ERROR
    assert events(sessions, job_id)[-1].level == "error"


def test_a_released_job_waits_out_its_delay_and_is_sent_again(sessions, job_id):
    lease = claim(sessions, job_id)
    step(sessions, job_queue.mark_dispatched, [job_id])
    assert step(sessions, jobs.release, lease, "the store does not answer", delay=60)
    job = get_job(sessions, job_id)
    assert (job.state, job.attempt, job.dispatched_at, job.worker, job.phase) == ("queued", 1, None, None, "queued")
    assert claim(sessions, job_id) is None
    assert step(sessions, job_queue.due_for_dispatch, 0.0) == []
    with sessions.begin() as session:
        session.execute(update(Job).values(not_before=0))
    assert [job.id for job in step(sessions, job_queue.due_for_dispatch, 0.0)] == [job_id]
    assert claim(sessions, job_id) == Lease(job_id, 2)


def test_a_refunded_attempt_does_not_count(sessions, job_id):
    step(sessions, jobs.release, claim(sessions, job_id), "shutdown", refund=True)
    assert get_job(sessions, job_id).attempt == 0
    assert claim(sessions, job_id) == Lease(job_id, 2)


def test_the_last_attempt_can_only_be_refunded_or_fail(sessions, tenant):
    job_id = add_job(sessions, tenant, max_attempts=1)
    lease = claim(sessions, job_id)
    assert not step(sessions, jobs.release, lease, "once more")
    assert get_job(sessions, job_id).state == "running"
    assert step(sessions, jobs.release, lease, "shutdown", refund=True)
    assert step(sessions, jobs.fail, claim(sessions, job_id), ERROR)


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once_and_never_runs(sessions, tenant, job_id):
    assert step(sessions, job_requests.request_cancel, tenant, job_id).state == "cancelled"
    assert claim(sessions, job_id) is None
    assert step(sessions, job_queue.due_for_dispatch, 0.0) == []
    assert step(sessions, job_requests.request_cancel, tenant, job_id).state == "cancelled"
    assert [event.message for event in events(sessions, job_id)] == ["cancelled"]


def test_a_cancelled_running_job_can_not_publish(sessions, tenant, job_id):
    lease = claim(sessions, job_id)
    assert not step(sessions, jobs.finish_cancelled, lease)
    assert step(sessions, job_requests.request_cancel, tenant, job_id).state == "cancelling"
    assert step(sessions, jobs.heartbeat, lease, LEASE) == "cancelling"
    assert not step(sessions, jobs.fail, lease, ERROR)
    assert not step(sessions, jobs.publish, lease, [publication(tenant)])
    assert step(sessions, jobs.finish_cancelled, lease)
    assert get_job(sessions, job_id).state == "cancelled"


def test_a_release_of_a_cancelled_job_ends_it(sessions, tenant, job_id):
    lease = claim(sessions, job_id)
    step(sessions, job_requests.request_cancel, tenant, job_id)
    assert step(sessions, jobs.release, lease, "shutdown")
    assert get_job(sessions, job_id).state == "cancelled"


@pytest.mark.parametrize("ending", ["succeeded", "failed"])
def test_a_finished_job_can_not_be_cancelled(sessions, tenant, job_id, ending):
    lease = claim(sessions, job_id)
    if ending == "succeeded":
        step(sessions, jobs.publish, lease, [publication(tenant)])
    else:
        step(sessions, jobs.fail, lease, ERROR)
    with pytest.raises(JobAlreadyFinished, match=ending):
        step(sessions, job_requests.request_cancel, tenant, job_id)


def test_another_tenants_job_does_not_exist(sessions, job_id):
    stranger = add_tenant(sessions, "other")
    for wanted in (job_id, "job_unknown"):
        with pytest.raises(NotFound):
            step(sessions, job_requests.request_cancel, stranger, wanted)
    assert get_job(sessions, job_id).state == "queued"


# --- lost workers -----------------------------------------------------------------------------------------------------


def test_an_expired_lease_queues_the_job_until_its_attempts_are_used_up(sessions, tenant):
    job_id = add_job(sessions, tenant, max_attempts=2, request_id="req-1")
    claim(sessions, job_id)
    assert step(sessions, job_queue.expire_leases) == []
    let_lease_run_out(sessions, job_id)
    assert [job.state for job in step(sessions, job_queue.expire_leases)] == ["queued"]
    assert step(sessions, job_queue.expire_leases) == []
    claim(sessions, job_id)
    let_lease_run_out(sessions, job_id)
    assert [job.state for job in step(sessions, job_queue.expire_leases)] == ["failed"]
    error = ErrorObject.model_validate(get_job(sessions, job_id).error)
    assert (error.code, error.request_id) == ("worker_lost", "req-1")
    assert claim(sessions, job_id) is None


def test_an_expired_lease_ends_a_cancelled_job(sessions, tenant, job_id):
    claim(sessions, job_id)
    step(sessions, job_requests.request_cancel, tenant, job_id)
    let_lease_run_out(sessions, job_id)
    step(sessions, job_queue.expire_leases)
    assert get_job(sessions, job_id).state == "cancelled"


def test_a_checkpoint_survives_the_attempt_that_made_it(sessions, job_id):
    lease = claim(sessions, job_id)
    assert step(sessions, jobs.save_checkpoint, lease, {"step": 3})
    let_lease_run_out(sessions, job_id)
    step(sessions, job_queue.expire_leases)
    with sessions.begin() as session:
        assert jobs.claim(session, job_id, "w2", LEASE).checkpoint == {"step": 3}


# --- dispatch ---------------------------------------------------------------------------------------------------------


def test_jobs_are_due_until_sent_and_again_if_not_claimed(sessions, tenant):
    first, second = add_job(sessions, tenant), add_job(sessions, tenant)

    def due(after):
        return [job.id for job in step(sessions, job_queue.due_for_dispatch, after)]

    assert due(60) == [first, second]
    step(sessions, job_queue.mark_dispatched, [first])
    assert due(60) == [second]
    assert due(0) == [second, first]
    claim(sessions, second)
    assert due(0) == [first]


def test_a_late_note_of_dispatch_does_not_touch_a_running_job(sessions, job_id):
    claim(sessions, job_id)
    step(sessions, job_queue.mark_dispatched, [job_id])
    assert get_job(sessions, job_id).dispatched_at is None


def test_events_are_numbered_across_writers(sessions, job_id):
    step(sessions, jobs.append_event, job_id, Event("created"))
    lease = claim(sessions, job_id)
    step(sessions, jobs.append_event, job_id, Event("careful", "warn", data={"why": "because"}))
    step(sessions, jobs.heartbeat, lease, LEASE, None, [Event("beat")])
    assert [event.message for event in events(sessions, job_id)] == ["created", "started", "careful", "beat"]


def test_leases_follow_the_databases_clock(sessions, job_id, monkeypatch):
    """A worker whose clock is an hour ahead neither loses nor gains anything."""
    monkeypatch.setattr("time.time", lambda: 4e9)
    claim(sessions, job_id)
    assert step(sessions, job_queue.expire_leases) == []
    with sessions() as session:
        from armature.db.base import db_now

        left = session.scalar(select(func.round(Job.lease_until - db_now())))
    assert 28 <= left <= 30
    assert states(sessions) == ["running"]


# --- pausing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(sessions, tenant):
    return add_job(sessions, tenant, kind="arm.train")


def test_a_waiting_job_of_any_kind_pauses_at_once_and_resumes_where_it_was(sessions, tenant, job_id):
    assert step(sessions, job_requests.request_pause, tenant, job_id).state == "paused"
    assert step(sessions, job_requests.request_pause, tenant, job_id).state == "paused"
    assert claim(sessions, job_id) is None
    assert step(sessions, job_queue.due_for_dispatch, 0.0) == []
    assert step(sessions, job_requests.resume, tenant, job_id).state == "queued"
    assert claim(sessions, job_id) == Lease(job_id, 1)
    assert [event.message for event in events(sessions, job_id)] == ["paused", "resumed", "started"]


def test_pausing_a_running_job_refunds_the_attempt(sessions, tenant, training):
    lease = claim(sessions, training)
    assert not step(sessions, jobs.finish_paused, lease)
    job = step(sessions, job_requests.request_pause, tenant, training)
    assert (job.state, job.pause_requested) == ("running", True)
    assert step(sessions, jobs.heartbeat, lease, LEASE) == "pause_requested"
    step(sessions, jobs.save_checkpoint, lease, {"step": 7})
    assert step(sessions, jobs.finish_paused, lease)
    job = get_job(sessions, training)
    assert (job.state, job.phase, job.attempt, job.pause_requested) == ("paused", "paused", 0, False)
    step(sessions, job_requests.resume, tenant, training)
    with sessions.begin() as session:
        job = jobs.claim(session, training, "w2", LEASE)
        assert (job.checkpoint, job.attempt, job.fence) == ({"step": 7}, 1, 2)


def test_a_running_job_that_saves_nothing_is_not_paused(sessions, tenant, job_id):
    claim(sessions, job_id)
    with pytest.raises(InvalidTransition, match="discard its work"):
        step(sessions, job_requests.request_pause, tenant, job_id)
    assert not get_job(sessions, job_id).pause_requested


@pytest.mark.parametrize("end", ["release", "expire"])
def test_an_unacknowledged_pause_takes_effect_at_the_attempts_end(sessions, tenant, training, end):
    lease = claim(sessions, training)
    step(sessions, job_requests.request_pause, tenant, training)
    if end == "release":
        assert step(sessions, jobs.release, lease, "shutdown", refund=True)
    else:
        let_lease_run_out(sessions, training)
        step(sessions, job_queue.expire_leases)
    assert get_job(sessions, training).state == "paused"


def test_a_cancellation_overrules_a_pause(sessions, tenant, training):
    lease = claim(sessions, training)
    step(sessions, job_requests.request_pause, tenant, training)
    assert step(sessions, job_requests.request_cancel, tenant, training).state == "cancelling"
    assert step(sessions, jobs.heartbeat, lease, LEASE) == "cancelling"
    with pytest.raises(InvalidTransition):
        step(sessions, job_requests.request_pause, tenant, training)
    assert step(sessions, jobs.release, lease, "shutdown")
    assert get_job(sessions, training).state == "cancelled"


def test_a_paused_job_can_be_cancelled(sessions, tenant, job_id):
    step(sessions, job_requests.request_pause, tenant, job_id)
    assert step(sessions, job_requests.request_cancel, tenant, job_id).state == "cancelled"


@pytest.mark.parametrize("state", ["queued", "running", "cancelling", "cancelled"])
def test_only_a_paused_job_resumes(sessions, tenant, job_id, state):
    if state in ("running", "cancelling"):
        claim(sessions, job_id)
    if state in ("cancelling", "cancelled"):
        step(sessions, job_requests.request_cancel, tenant, job_id)
    with pytest.raises(InvalidTransition, match=state):
        step(sessions, job_requests.resume, tenant, job_id)
    assert get_job(sessions, job_id).state == state


# --- progress ---------------------------------------------------------------------------------------------------------


def test_the_percentage_never_goes_back_over_attempts(sessions, job_id):
    lease = claim(sessions, job_id)
    step(sessions, jobs.heartbeat, lease, LEASE, Position("train", 5, 10, percent=50.0, eta_seconds=9.0))
    step(sessions, jobs.release, lease, "shutdown")
    assert get_job(sessions, job_id).eta_seconds is None
    lease = claim(sessions, job_id)
    step(sessions, jobs.heartbeat, lease, LEASE, Position("train", 1, 10, percent=10.0, eta_seconds=90.0))
    job = get_job(sessions, job_id)
    assert (job.percent, job.step, job.eta_seconds) == (50.0, 1, 90.0)
    assert job.progress_at is not None


def test_queue_positions(sessions, tenant, monkeypatch):
    monkeypatch.setattr(job_queue, "QUEUE_HORIZON", 3)
    ids = [add_job(sessions, tenant, created_at=float(number)) for number in range(5)]
    other = add_job(sessions, tenant, queue="gpu")
    claim(sessions, ids[0])
    rows = [get_job(sessions, id) for id in [*ids, other]]
    places = step(sessions, job_queue.queue_positions, rows)
    assert places == {ids[1]: 1, ids[2]: 2, ids[3]: 3, other: 1}
