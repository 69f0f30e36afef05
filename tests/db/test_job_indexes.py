"""What requests, workers and the relay ask of PostgreSQL stays indexed: no plan reads all of a large table.

Requests ask as their tenant does, under row security, which keeps PostgreSQL from using some indexes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from armature.db import job_queue, jobs
from armature.db.artifacts import delete_expired
from armature.db.fair_share import full_tenants, next_job, take_turn
from armature.db.models import Artifact, Job
from armature.db.row_security import SYSTEM
from armature.db.session import make_engine, make_session_factory, session_for
from armature.settings import DatabaseSettings
from armature_api import metrics, quotas
from armature_api.artifacts.lineage import trace
from armature_api.jobs.events import events_after
from armature_api.jobs.filters import has_pair
from armature_api.jobs.service import job_views
from armature_api.kit.queries import PageRequest, find, newest_first, visible_parts
from benchmarks.api.rows import fill
from tests.support.jobs import add_tenant

JOBS = 10_000
LARGE = ("jobs", "job_labels", "job_events", "artifacts", "artifact_parents")


@dataclass(frozen=True)
class Filled:
    """A full database, its largest tenant, and one of that tenant's jobs in each state that matters here."""

    engine: Engine
    tenant: str
    done: str
    queued: str
    artifact: str


@pytest.fixture(scope="module")
def filled(postgres_server, postgres_template) -> Iterator[Filled]:
    with postgres_server.database(postgres_template) as url:
        engine = make_engine(DatabaseSettings(url=url))
        sessions = make_session_factory(engine)
        tenant = add_tenant(sessions)
        fill(sessions, tenant, JOBS)
        with sessions() as session:

            def first(state: str) -> str:
                mine = select(Job.id).where(Job.tenant_id == tenant, Job.state == state)
                return session.scalars(mine.order_by(Job.created_at).limit(1)).one()

            done, queued = first("succeeded"), first("queued")
            artifact = session.scalars(select(Artifact.id).where(Artifact.job_id == done)).one()
        yield Filled(engine, tenant, done, queued, artifact)
        engine.dispose()


@contextmanager
def explained(engine: Engine) -> Iterator[list[str]]:
    """The plans of the statements that are run meanwhile."""
    plans: list[str] = []

    def explain(connection, cursor, statement, parameters, context, executemany):
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")) and not executemany:
            with connection.connection.cursor() as asking:
                asking.execute(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(row[0] for row in asking.fetchall()))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def listed(session: Session, filled: Filled, model: Any, *filters: Any, **page: Any) -> Any:
    return newest_first(session, model, visible_parts(model, filled.tenant), PageRequest(**page), filters)


Question = Callable[[Session, Filled], Any]

OF_A_TENANT: dict[str, Question] = {
    "list": lambda s, f: job_views(s, listed(s, f, Job)[0]),
    "list from a place": lambda s, f: listed(s, f, Job, after=f.done),
    "list by state": lambda s, f: listed(s, f, Job, Job.state == "failed"),
    "list by kind": lambda s, f: listed(s, f, Job, Job.kind == "evaluation.run", order="asc"),
    "list artifacts": lambda s, f: listed(s, f, Artifact),
    "list artifacts from a place": lambda s, f: listed(s, f, Artifact, after=f.artifact),
    "list artifacts by kind": lambda s, f: listed(s, f, Artifact, Artifact.kind == "adapter"),
    "list by metadata": lambda s, f: listed(s, f, Job, has_pair("team", "team-7")),
    "list by rare metadata": lambda s, f: listed(s, f, Job, has_pair("ticket", "T-1")),
    "get": lambda s, f: job_views(s, [find(s, Job, f.tenant, f.done)]),
    "get a queued one": lambda s, f: job_views(s, [find(s, Job, f.tenant, f.queued)]),
    "get an artifact": lambda s, f: find(s, Artifact, f.tenant, f.artifact),
    "lineage": lambda s, f: trace(s, f.tenant, find(s, Artifact, f.tenant, f.artifact)),
    "events": lambda s, f: events_after(s, f.done, 1, 20),
    "usage": lambda s, f: quotas.usage_of(s, f.tenant),
}
OF_THE_SYSTEM: dict[str, Question] = {
    "whose turn": lambda s, f: next_job(s, f.queued),
    "take a turn": lambda s, f: take_turn(s, f.queued),
    "claim": lambda s, f: jobs.claim(s, f.queued, "w", 30.0),
    "full tenants": lambda s, f: full_tenants(s),
    "dispatch": lambda s, f: job_queue.due_for_dispatch(s, 60.0),
    "expire": lambda s, f: job_queue.expire_leases(s),
    "expired artifacts": lambda s, f: delete_expired(s, f.tenant),
    "scrape": lambda s, f: metrics._read(s),
}


def assert_indexed(filled: Filled, question: Question, acts_for: str) -> list[str]:
    sessions = make_session_factory(filled.engine)
    with session_for(sessions, acts_for) as session, explained(filled.engine) as plans:
        question(session, filled)
        session.rollback()
    assert plans
    for plan in plans:
        for table in LARGE:
            assert f"Seq Scan on {table}" not in plan, plan
    return plans


@pytest.mark.parametrize("question", sorted(OF_A_TENANT))
def test_no_request_reads_a_whole_table(filled: Filled, question: str) -> None:
    assert_indexed(filled, OF_A_TENANT[question], filled.tenant)


@pytest.mark.parametrize("question", sorted(OF_THE_SYSTEM))
def test_no_step_of_worker_relay_or_scrape_reads_a_whole_table(filled: Filled, question: str) -> None:
    assert_indexed(filled, OF_THE_SYSTEM[question], SYSTEM)


def test_stored_bytes_are_summed_from_an_index_alone(filled: Filled) -> None:
    plans = assert_indexed(filled, lambda s, f: quotas.stored_bytes(s, f.tenant), filled.tenant)
    assert any("Index Only Scan using ix_artifacts_stored" in plan for plan in plans), plans


@pytest.mark.parametrize(
    ("question", "bound"),
    [
        ("usage", "created_at >"),
        ("dispatch", "dispatched_at <"),
        ("expired artifacts", "expires_at <="),
        ("scrape", "finished_at >"),
    ],
)
def test_the_clock_bounds_what_is_read(filled: Filled, question: str, bound: str) -> None:
    """A clock that is read anew for each row could only sort rows out after they were read."""
    plans = assert_indexed(filled, {**OF_A_TENANT, **OF_THE_SYSTEM}[question], SYSTEM)
    assert any(bound in line for plan in plans for line in plan.splitlines() if "Index Cond" in line), plans
