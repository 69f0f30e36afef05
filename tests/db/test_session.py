"""Transactions behave alike on both databases, and SQLite never loses a race for its write lock."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from armature.db.models import Artifact, Tenant
from armature.db.session import make_engine, make_session_factory
from armature.settings import DatabaseSettings
from tests.support.jobs import add_job, add_tenant, get_job


def names(sessions: sessionmaker[Session]) -> list[str]:
    with sessions() as session:
        return list(session.scalars(select(Tenant.name).order_by(Tenant.name)))


def test_an_exception_rolls_everything_back(sessions):
    def write_and_fail() -> None:
        with sessions.begin() as session:
            session.add(Tenant(name="ghost"))
            session.flush()
            raise RuntimeError("after the write")

    with pytest.raises(RuntimeError, match="after the write"):
        write_and_fail()
    assert names(sessions) == []


def test_foreign_keys_are_enforced(sessions):
    orphan = Artifact(
        tenant_id="ten_none",
        job_id="job_none",
        name="x",
        kind="report",
        digest="0",
        manifest_key="k",
        manifest={},
        bytes=1,
    )
    with pytest.raises(IntegrityError), sessions.begin() as session:
        session.add(orphan)


def test_sizes_beyond_32_bits_and_null_json_are_stored(sessions):
    tenant = add_tenant(sessions)
    job_id = add_job(sessions, tenant, checkpoint=None)
    with sessions.begin() as session:
        session.add(
            Artifact(
                tenant_id=tenant,
                job_id=job_id,
                name="x",
                kind="report",
                digest="0",
                manifest_key="k",
                manifest={},
                bytes=2**40,
            )
        )
    with sessions() as session:
        assert session.scalars(select(Artifact.bytes)).one() == 2**40
        assert session.execute(text("SELECT count(*) FROM jobs WHERE checkpoint IS NULL")).scalar_one() == 1
    assert get_job(sessions, job_id).checkpoint is None


def test_read_then_write_in_parallel_loses_no_update(sessions):
    """Each thread reads, then writes that plus one. On SQLite that takes the write lock from the start."""
    add_tenant(sessions, "0")

    def count() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                tenant = session.scalars(select(Tenant).with_for_update()).one()
                tenant.name = str(int(tenant.name) + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(sessions) == ["40"]


def test_readers_neither_wait_for_a_writer_nor_see_what_it_did_not_commit(engine: Engine, sessions):
    add_tenant(sessions, "before")
    readers = make_session_factory(engine, read_only=True)
    with sessions.begin() as writer:
        writer.execute(update(Tenant).values(name="after"))
        assert names(readers) == ["before"]
    assert names(readers) == ["after"]


def test_sqlite_writes_ahead_and_creates_its_folder(tmp_path: Path):
    engine = make_engine(DatabaseSettings(url=f"sqlite:///{tmp_path}/new/folder/armature.db"))
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    engine.dispose()


def test_other_databases_are_refused():
    with pytest.raises(ValueError, match=r"database\.url"):
        make_engine(DatabaseSettings(url="mysql://localhost/armature"))


def test_connections_that_meet_on_a_new_file_all_open_it(tmp_path: Path) -> None:
    meeting = threading.Barrier(4)

    def journal_mode(round: int) -> str:
        engine = make_engine(DatabaseSettings(url=f"sqlite:///{tmp_path}/{round}.db"))
        meeting.wait()
        with engine.connect() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        engine.dispose()
        return str(mode)

    with ThreadPoolExecutor(4) as threads:
        for round in range(40):  # without a second try, one in ten of these failed
            assert set(threads.map(journal_mode, [round] * 4)) == {"wal"}


@pytest.mark.parametrize(("prepared", "kept"), [(True, 1), (False, 0)])
def test_statements_are_prepared_on_the_server_unless_a_pooler_forbids_it(postgres_server, prepared, kept):
    """PgBouncer in transaction mode gives the second use of a statement another connection, which never prepared it."""
    with postgres_server.database() as url:
        engine = make_engine(DatabaseSettings(url=url, pool_size=1, prepared_statements=prepared))
        with engine.connect() as connection:
            for _ in range(9):
                assert connection.execute(text("SELECT 40 + :n"), {"n": 2}).scalar() == 42
            prepared_here = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT 40%'")
            assert connection.execute(prepared_here).scalar() == kept
        engine.dispose()
