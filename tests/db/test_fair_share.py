"""Tenants get equal shares of the workers, and none exceeds its limit of running jobs."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session, sessionmaker

from armature.db import jobs
from armature.db.fair_share import full_tenants, next_job, take_turn
from armature.db.models import Job, Tenant
from armature.db.session import make_engine, make_session_factory
from armature.db.transitions import Lease
from armature.settings import DatabaseSettings
from tests.support.jobs import add_job, add_tenant, get_job

Sessions = sessionmaker[Session]


def start(sessions: Sessions, ticket: str) -> Job | None:
    """Claim the ticket's job, as a worker does with a message."""
    with sessions.begin() as session:
        job_id = next_job(session, ticket)
    if job_id is None:
        return None
    with sessions.begin() as session:
        return jobs.claim(session, job_id, "worker", 60) if take_turn(session, job_id) else None


def end(sessions: Sessions, job: Job) -> None:
    with sessions.begin() as session:
        assert jobs.release(session, Lease(job.id, job.fence), "done for now", delay=10_000)


def limit(sessions: Sessions, tenant_id: str, running: int) -> None:
    with sessions.begin() as session:
        session.get_one(Tenant, tenant_id).limits = {"running_jobs": running}


def test_a_thousand_jobs_of_one_tenant_delay_anothers_by_one(sessions: Sessions) -> None:
    loud, quiet = add_tenant(sessions, "loud"), add_tenant(sessions, "quiet")
    with sessions.begin() as session:
        many = [
            Job(tenant_id=loud, kind="test.work", queue="cpu", spec={}, inputs={}, max_attempts=3) for _ in range(1000)
        ]
        session.add_all(many)
    tickets = [job.id for job in many]
    late = [add_job(sessions, quiet) for _ in range(3)]
    order = []
    for ticket in tickets[:8]:  # the broker knows only of the loud ones as yet
        job = start(sessions, ticket)
        assert job is not None
        order.append(job.tenant_id)
        end(sessions, job)
    assert order[:6] in ([loud, quiet] * 3, [quiet, loud] * 3)
    assert order[6:] == [loud, loud]
    assert all(get_job(sessions, job_id).attempt == 1 for job_id in late)


def test_the_tenant_with_fewer_running_jobs_comes_first(sessions: Sessions) -> None:
    a, b = add_tenant(sessions, "a"), add_tenant(sessions, "b")
    of_a, of_b = ([add_job(sessions, tenant) for _ in range(3)] for tenant in (a, b))
    started = [start(sessions, of_a[0]) for _ in range(6)]
    ids = [job.id for job in started if job is not None]
    assert [job_id for job_id in ids if job_id in of_a] == of_a
    assert [job_id for job_id in ids if job_id in of_b] == of_b
    assert {frozenset(pair) for pair in zip(ids[::2], ids[1::2], strict=True)} == {
        frozenset(pair) for pair in zip(of_a, of_b, strict=True)
    }
    assert start(sessions, of_a[0]) is None


def test_a_ticket_gives_a_startable_job_of_its_queue(sessions: Sessions) -> None:
    tenant = add_tenant(sessions)
    add_job(sessions, tenant, queue="gpu")
    backing_off = add_job(sessions, tenant, not_before=1e12)
    add_job(sessions, tenant, state="paused")
    ticket = add_job(sessions, tenant)
    job = start(sessions, backing_off)
    assert job is not None
    assert job.id == ticket
    for useless in (ticket, "job_none"):
        assert start(sessions, useless) is None


def test_a_tenant_at_its_limit_is_skipped(sessions: Sessions) -> None:
    a, b = add_tenant(sessions, "a"), add_tenant(sessions, "b")
    of_a, of_b = ([add_job(sessions, tenant) for _ in range(2)] for tenant in (a, b))
    limit(sessions, a, 1)
    limit(sessions, b, 0)
    first = start(sessions, of_b[0])
    assert first is not None
    assert first.id == of_a[0]
    assert start(sessions, of_a[1]) is None
    with sessions.begin() as session:
        assert full_tenants(session) == {a, b}
    end(sessions, first)
    with sessions.begin() as session:
        assert full_tenants(session) == {b}
    second = start(sessions, of_b[1])
    assert second is not None
    assert second.id == of_a[1]


def test_concurrent_claims_do_not_exceed_the_limit(sessions: Sessions) -> None:
    tenant = add_tenant(sessions)
    waiting = [add_job(sessions, tenant, dispatched_at=1.0) for _ in range(8)]
    limit(sessions, tenant, 3)

    def claim(job_id: str) -> bool:
        with sessions.begin() as session:
            return take_turn(session, job_id) and jobs.claim(session, job_id, "worker", 60) is not None

    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(claim, waiting))
    assert sum(claimed) == 3
    for job_id, won in zip(waiting, claimed, strict=True):
        assert (get_job(sessions, job_id).dispatched_at is None) is not won  # to be sent again when there is room


@pytest.fixture(scope="module")
def shared_sessions(sqlite_template, tmp_path_factory):
    path = tmp_path_factory.mktemp("shares") / "armature.db"
    shutil.copyfile(sqlite_template, path)
    engine = make_engine(DatabaseSettings(url=f"sqlite:///{path}"))
    yield make_session_factory(engine)
    engine.dispose()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_while_tenants_wait_their_shares_differ_by_one(shared_sessions: Sessions, counts: list[int]) -> None:
    with shared_sessions.begin() as session:
        session.query(Job).delete()
        session.query(Tenant).delete()
    tenants = [add_tenant(shared_sessions, f"t{index}") for index in range(len(counts))]
    left = dict(zip(tenants, counts, strict=True))
    ticket, *_ = [add_job(shared_sessions, tenant) for tenant, count in left.items() for _ in range(count)]
    served: Counter[str] = Counter()
    while (job := start(shared_sessions, ticket)) is not None:
        served[job.tenant_id] += 1
        waiting = [served[tenant] for tenant in tenants if served[tenant] < left[tenant]]
        assert all(max(served.values()) - share <= 1 for share in waiting)
        end(shared_sessions, job)
    assert served == left
