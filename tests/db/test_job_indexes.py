"""What requests, workers and the relay ask of PostgreSQL stays indexed: no plan reads all jobs, or all events."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from armature.db import job_queue, jobs
from armature.db.models import Job
from armature.db.session import make_engine, make_session_factory
from armature.settings import DatabaseSettings
from armature_api.jobs.events import events_after
from armature_api.rows import PageRequest, find, newest_first, visible
from tests.support.jobs import add_tenant

JOBS, EVENTS = 20_000, 40_000
_FILL_JOBS = f"""
INSERT INTO jobs (id, tenant_id, kind, queue, spec, inputs, max_attempts, shared, metadata, state, pause_requested,
    attempt, fence, phase, step, total_steps, percent, last_event_seq, created_at, dispatched_at, lease_until)
SELECT 'job_' || lpad(n::text, 10, '0'), :tenant, 'arm.train', 'gpu', '{{}}', '{{}}', 3, false, '{{}}',
    (ARRAY['queued', 'succeeded', 'failed', 'cancelled', 'paused'])[1 + n % 5], false,
    0, 0, 'queued', 0, 0, 0, 2, n, extract(epoch from now()), NULL
FROM generate_series(1, {JOBS}) n"""
_FILL_EVENTS = f"""
INSERT INTO job_events (job_id, seq, level, type, message, data, created_at)
SELECT 'job_' || lpad((1 + n / 2)::text, 10, '0'), 1 + n % 2, 'info', 'message', 'x', '{{}}', n
FROM generate_series(0, {EVENTS - 1}) n"""


@pytest.fixture(scope="module")
def filled(postgres_server, postgres_template) -> Iterator[tuple[Engine, str]]:
    with postgres_server.database(postgres_template) as url:
        engine = make_engine(DatabaseSettings(url=url))
        tenant = add_tenant(make_session_factory(engine))
        with engine.begin() as connection:
            connection.execute(text(_FILL_JOBS), {"tenant": tenant})
            connection.execute(text(_FILL_EVENTS))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
        yield engine, tenant
        engine.dispose()


@contextmanager
def explained(engine: Engine) -> Iterator[list[str]]:
    """The plans of the statements that are run meanwhile."""
    plans: list[str] = []

    def explain(connection, cursor, statement, parameters, context, executemany):
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE")) and not executemany:
            with connection.connection.cursor() as asking:
                asking.execute(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(row[0] for row in asking.fetchall()))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)


ASKED: dict[str, Any] = {
    "list": lambda session, tenant: newest_first(session, Job, visible(Job, tenant), PageRequest()),
    "list by state": lambda session, tenant: newest_first(
        session, Job, visible(Job, tenant), PageRequest(after="job_0000009999"), [Job.state == "failed"]
    ),
    "list by kind": lambda session, tenant: newest_first(
        session, Job, visible(Job, tenant), PageRequest(order="asc"), [Job.kind == "evaluation.run"]
    ),
    "get": lambda session, tenant: find(session, Job, tenant, "job_0000000042"),
    "events": lambda session, tenant: events_after(session, "job_0000000042", 1, 20),
    "claim": lambda session, tenant: jobs.claim(session, "job_0000000005", "w", 30.0),
    "place in the queue": lambda session, tenant: job_queue.queue_positions(
        session, [find(session, Job, tenant, "job_0000000010")]
    ),
    "dispatch": lambda session, tenant: job_queue.due_for_dispatch(session, 60.0),
    "expire": lambda session, tenant: job_queue.expire_leases(session),
}


@pytest.mark.parametrize("question", sorted(ASKED))
def test_no_plan_reads_all_jobs_or_events(filled: tuple[Engine, str], question: str) -> None:
    engine, tenant = filled
    sessions: sessionmaker[Session] = make_session_factory(engine)
    with sessions() as session, explained(engine) as plans:
        ASKED[question](session, tenant)
        session.rollback()
    assert plans
    for plan in plans:
        assert "Seq Scan on jobs" not in plan, plan
        assert "Seq Scan on job_events" not in plan, plan
