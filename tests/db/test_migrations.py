"""The migrations and the models say the same, and every migration can be undone."""

import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect

from armature.db.base import Base
from armature.db.migrate import downgrade, upgrade
from armature.db.session import make_engine
from armature.settings import DatabaseSettings


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request, tmp_path):
    url = f"sqlite:///{tmp_path}/armature.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    engine = make_engine(DatabaseSettings(url=url))
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def test_migrated_tables_are_the_models(empty: Engine):
    upgrade(empty)
    with empty.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert tables(empty) == {*Base.metadata.tables, "alembic_version"}


def test_down_to_nothing_and_up_again(empty: Engine):
    upgrade(empty)
    downgrade(empty, "base")
    assert tables(empty) == {"alembic_version"}
    upgrade(empty)
    assert tables(empty) > set(Base.metadata.tables)


def test_services_that_start_together_migrate_once(empty: Engine):
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            upgrade(empty)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tables(empty) > set(Base.metadata.tables)


def test_a_failing_migration_leaves_nothing(empty: Engine, monkeypatch):
    from alembic.operations import Operations

    create_table = Operations.create_table

    def break_at_jobs(self, name, *args, **options):
        if name == "job_events":
            raise RuntimeError("disk full")
        return create_table(self, name, *args, **options)

    monkeypatch.setattr(Operations, "create_table", break_at_jobs)
    with pytest.raises(RuntimeError, match="disk full"):
        upgrade(empty)
    assert tables(empty) == set()


def test_rows_survive_the_migrations_up_and_down(empty: Engine):
    """SQLite alters a table by copying it; what refers to its rows must not go with the old copy."""
    upgrade(empty, "0005")
    with empty.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenants (id, name, created_at) VALUES ('t', 'acme', 0)")
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, tenant_id, kind, queue, spec, inputs, max_attempts, shared, metadata, state,"
            " cancel_requested_at, attempt, fence, phase, step, total_steps, last_event_seq, created_at)"
            " VALUES ('j', 't', 'x', 'cpu', '{}', '{}', 3, false, '{\"team\": \"a\"}', 'running',"
            " 5, 1, 1, 'train', 1, 2, 1, 0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO job_events (job_id, seq, level, type, message, data, created_at)"
            " VALUES ('j', 1, 'info', 'message', 'started', '{}', 0)"
        )
    upgrade(empty)
    assert rows(empty, "SELECT state, percent FROM jobs") == [("cancelling", 0)]
    assert rows(empty, "SELECT message FROM job_events") == [("started",)]
    assert rows(empty, "SELECT job_id, key, tenant_id, value FROM job_labels") == [("j", "team", "t", "a")]
    downgrade(empty, "0005")
    assert rows(empty, "SELECT state FROM jobs WHERE cancel_requested_at IS NOT NULL") == [("running",)]
    assert rows(empty, "SELECT message FROM job_events") == [("started",)]


def rows(engine: Engine, query: str) -> list[tuple]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]
