"""Row security on PostgreSQL: a query without its tenant filter finds no foreign row."""

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, delete, func, make_url, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from armature.db.base import Base
from armature.db.jobs import append_event
from armature.db.migrate import upgrade
from armature.db.models import Artifact, Job, JobEvent, Profile, ProfileVersion, Tenant
from armature.db.row_security import SYSTEM, tenant_rule
from armature.db.session import make_engine, make_session_factory, session_for
from armature.db.transitions import Event
from armature.settings import DatabaseSettings
from tests.support.jobs import add_job, add_tenant

pytestmark = pytest.mark.server

OPEN = {"installation"}
"""Tables that hold nothing of a tenant's."""


@pytest.fixture(params=["superuser", "owner"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database of a role above row security, and one of an ordinary role that owns it. One connection is shared."""
    settings = request.getfixturevalue("postgres_settings")
    url = settings.url.get_secret_value()
    if request.param == "owner":
        url = _owned_by_an_ordinary_role(url)
    engine = make_engine(DatabaseSettings(url=url, pool_size=1))
    upgrade(engine)
    yield engine
    engine.dispose()


def _owned_by_an_ordinary_role(url: str) -> str:
    name, password = f"owner_{secrets.token_hex(4)}", secrets.token_hex(8)
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(False), autocommit=True) as admin:
        role, database = sql.Identifier(name), sql.Identifier(make_url(url).database or "")
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
        admin.execute(sql.SQL("DROP SCHEMA public CASCADE"))
        admin.execute(sql.SQL("CREATE SCHEMA public AUTHORIZATION {}").format(role))
    return make_url(url).set(username=name, password=password).render_as_string(False)


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)


@pytest.fixture
def tenants(sessions: sessionmaker[Session]) -> tuple[str, str]:
    """Two tenants, each with a row in tables of every sort."""
    ids = add_tenant(sessions, "acme"), add_tenant(sessions, "zen")
    for tenant_id in ids:
        job_id = add_job(sessions, tenant_id)
        with sessions.begin() as session:
            append_event(session, job_id, Event("hello"))
            profile = Profile(tenant_id=tenant_id, name="care")
            session.add(profile)
            session.flush()
            session.add(ProfileVersion(profile_id=profile.id, version=1, digest="0", request={}, manifest={}))
    return ids


ROWS = (Tenant, Job, JobEvent, Profile, ProfileVersion)


def counts(session: Session) -> list[int]:
    return [session.scalars(select(func.count()).select_from(model)).one() for model in ROWS]


def test_a_query_that_forgets_the_tenant_finds_its_own_rows_only(
    sessions: sessionmaker[Session], tenants: tuple[str, str]
) -> None:
    for tenant_id in tenants:
        with session_for(sessions, tenant_id) as session:
            assert counts(session) == [1] * len(ROWS)
            assert session.scalars(select(Job.tenant_id)).all() == [tenant_id]
    with session_for(sessions, "ten_nobody") as session:
        assert counts(session) == [0] * len(ROWS)
    with session_for(sessions, SYSTEM) as session:
        assert counts(session) == [2] * len(ROWS)


def test_a_query_without_filter_changes_no_foreign_row(
    sessions: sessionmaker[Session], tenants: tuple[str, str]
) -> None:
    with session_for(sessions, tenants[0]) as session, session.begin():
        session.execute(update(Job).values(kind="mine"))
        session.execute(update(ProfileVersion).values(digest="mine"))
        session.execute(delete(JobEvent))
    with sessions() as session:
        assert set(session.execute(select(Job.tenant_id, Job.kind))) == {
            (tenants[0], "mine"),
            (tenants[1], "test.work"),
        }
        assert sorted(session.scalars(select(ProfileVersion.digest))) == ["0", "mine"]
        assert session.scalars(select(func.count()).select_from(JobEvent)).one() == 1


def test_nothing_can_be_written_for_another_tenant(sessions: sessionmaker[Session], tenants: tuple[str, str]) -> None:
    with session_for(sessions, tenants[0]) as session:
        session.add(Profile(tenant_id=tenants[1], name="planted"))
        with pytest.raises(ProgrammingError, match="row-level security"):
            session.flush()
    with session_for(sessions, tenants[0]) as session, pytest.raises(ProgrammingError, match="row-level security"):
        session.execute(update(Job).values(tenant_id=tenants[1]))


def test_a_transaction_without_a_tenant_sees_nothing(engine: Engine, tenants: tuple[str, str]) -> None:
    """This holds for a superuser's connection too, in the role that tenants' transactions switch to."""
    with engine.connect() as connection:
        if connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")):
            connection.execute(text("SET LOCAL ROLE armature_tenant"))
        for table in Base.metadata.sorted_tables:
            assert connection.scalar(select(func.count()).select_from(table)) == 0, table.name


def test_a_pooled_connection_keeps_nothing_of_a_transaction(
    engine: Engine, sessions: sessionmaker[Session], tenants: tuple[str, str]
) -> None:
    """The pool has one connection, so each transaction runs on that of the transaction before."""
    pids = set()
    for tenant_id in (*tenants, SYSTEM, *tenants):
        with session_for(sessions, tenant_id) as session:
            pids.add(session.scalar(text("SELECT pg_backend_pid()")))
            expected = 2 if tenant_id == SYSTEM else 1
            assert session.scalars(select(func.count()).select_from(Job)).one() == expected
        with engine.connect() as connection:
            pids.add(connection.scalar(text("SELECT pg_backend_pid()")))
            assert connection.scalar(text("SELECT current_setting('armature.tenant', true)")) in ("", None)
            assert connection.scalar(text("SELECT current_user = session_user"))
    with session_for(sessions, tenants[0]) as session:
        session.scalar(text("SELECT 1"))
        session.rollback()
        assert session.scalars(select(Job.tenant_id)).all() == [tenants[0]]  # a second transaction of the session
    assert len(pids) == 1


def test_shared_rows_can_be_read_but_not_changed(sessions: sessionmaker[Session], tenants: tuple[str, str]) -> None:
    with sessions.begin() as session:
        for index, job in enumerate(session.scalars(select(Job)).all()):
            row = {"kind": "report", "digest": "0", "manifest_key": "k", "manifest": {}, "bytes": 1}
            session.add(Artifact(tenant_id=job.tenant_id, job_id=job.id, name="x", shared=bool(index), **row))
            job.shared = True  # of a job the results are shared, never the job
    with session_for(sessions, tenants[0]) as session, session.begin():
        assert session.scalars(select(func.count()).select_from(Artifact)).one() == 2
        assert session.scalars(select(func.count()).select_from(Job)).one() == 1
        session.execute(update(Artifact).values(digest="1"))
        assert sorted(session.scalars(select(Artifact.digest))) == ["0", "1"]


def test_every_table_of_tenants_has_policies(engine: Engine) -> None:
    assert {table.name for table in Base.metadata.sorted_tables if tenant_rule(table) is None} == OPEN
    with engine.connect() as connection:
        secured = set(
            connection.scalars(text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity"))
        )
    assert secured == {table.name for table in Base.metadata.sorted_tables} - OPEN


def test_an_upgrade_renews_a_rule_that_changed_and_no_other(engine: Engine) -> None:
    def policies() -> set[tuple[str, int]]:
        with engine.connect() as connection:
            return set(connection.execute(text("SELECT polname, oid FROM pg_policy")))

    before = policies()
    upgrade(engine)
    assert policies() == before
    with engine.begin() as connection:
        name = connection.scalar(text("SELECT policyname FROM pg_policies WHERE tablename = 'jobs'"))
        connection.execute(text(f"ALTER POLICY {name} ON jobs RENAME TO tenant_of_old"))
    upgrade(engine)
    after = policies()
    assert {name for name, _ in after} == {name for name, _ in before}
    assert len(after - before) == 1
