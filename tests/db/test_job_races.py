"""Of many processes that try the same step exactly one succeeds, on both databases."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from armature.db import jobs
from armature.db.job_queue import expire_leases
from armature.db.job_requests import request_cancel
from armature.db.transitions import Event, Lease
from armature.errors import InvalidTransition
from tests.support.jobs import (
    add_job,
    add_tenant,
    artifacts,
    events,
    get_job,
    let_lease_run_out,
    publication,
    starts,
)

LEASE = 30.0
CLAIMERS = 8
SEEDS = 25


@pytest.fixture
def tenant(sessions):
    return add_tenant(sessions)


def race(sessions, *functions: Callable, late: int | None = None):
    """Run each function in a transaction of its own, all let go at the same moment; their results or errors.

    The one numbered ``late`` starts a little later, so that it surely loses.
    """
    gate = threading.Barrier(len(functions))

    def run(function):
        gate.wait()
        if late is not None and function is functions[late]:
            time.sleep(0.05)
        try:
            with sessions.begin() as session:
                return function(session)
        except InvalidTransition as error:
            return error

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


def running_job(sessions, tenant) -> Lease:
    job_id = add_job(sessions, tenant)
    with sessions.begin() as session:
        return Lease(job_id, jobs.claim(session, job_id, "w", LEASE).fence)


def test_of_many_claims_one_wins(sessions, tenant):
    for _ in range(5):
        job_id = add_job(sessions, tenant)
        claims = [partial(jobs.claim, job_id=job_id, worker=f"w{n}", lease_seconds=LEASE) for n in range(CLAIMERS)]
        won = [job for job in race(sessions, *claims) if job is not None]
        assert [job.fence for job in won] == [1]
        assert starts(sessions, job_id) == 1
        assert get_job(sessions, job_id).worker == won[0].worker


def test_cancel_against_publish_has_one_winner(sessions, tenant):
    winners = set()
    for late in [0, 1, *[None] * SEEDS]:
        lease = running_job(sessions, tenant)
        cancelled, published = race(
            sessions,
            partial(request_cancel, tenant_id=tenant, job_id=lease.job_id),
            partial(jobs.publish, lease=lease, outputs=[publication(tenant)]),
            late=late,
        )
        job = get_job(sessions, lease.job_id)
        assert published is (job.state == "succeeded") is isinstance(cancelled, InvalidTransition)
        assert len(artifacts(sessions, lease.job_id)) == int(published)
        assert job.state in ("succeeded", "cancelling")
        events(sessions, lease.job_id)
        winners.add(published)
    assert winners == {True, False}


def test_cancel_against_release_never_leaves_a_cancelled_job_in_the_queue(sessions, tenant):
    for _ in range(SEEDS):
        lease = running_job(sessions, tenant)
        _, released = race(
            sessions,
            partial(request_cancel, tenant_id=tenant, job_id=lease.job_id),
            partial(jobs.release, lease=lease, reason="shutdown"),
        )
        assert released
        assert get_job(sessions, lease.job_id).state == "cancelled"


def test_expiry_against_publish_has_one_winner(sessions, tenant):
    for _ in range(SEEDS):
        lease = running_job(sessions, tenant)
        let_lease_run_out(sessions, lease.job_id)
        expired, published = race(
            sessions,
            expire_leases,
            partial(jobs.publish, lease=lease, outputs=[publication(tenant)]),
        )
        assert [job.id for job in expired] == ([] if published else [lease.job_id])
        assert get_job(sessions, lease.job_id).state == ("succeeded" if published else "queued")
        assert len(artifacts(sessions, lease.job_id)) == int(published)


def test_two_relays_expire_a_lease_once(sessions, tenant):
    for _ in range(5):
        lease = running_job(sessions, tenant)
        let_lease_run_out(sessions, lease.job_id)
        moved = race(sessions, *[expire_leases] * 4)
        assert sum(len(batch) for batch in moved) == 1
        events(sessions, lease.job_id)


def test_events_from_many_sides_have_no_gap(sessions, tenant):
    lease = running_job(sessions, tenant)
    writers = [lambda session, n=n: jobs.append_event(session, lease.job_id, Event(f"line {n}")) for n in range(8)]
    race(sessions, *writers)
    assert {event.message for event in events(sessions, lease.job_id)} == {"started", *(f"line {n}" for n in range(8))}
