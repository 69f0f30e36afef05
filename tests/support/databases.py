"""Migrated databases for the tests: a fresh SQLite file or PostgreSQL database each, copied from a template."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from armature.db.migrate import upgrade
from armature.db.session import make_engine, make_session_factory
from armature.settings import DatabaseSettings
from tests.support.servers import PostgresServer


def _migrate(url: str) -> None:
    engine = make_engine(DatabaseSettings(url=url))
    upgrade(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.database() as url:
        _migrate(url)
        yield url.rpartition("/")[2]


@pytest.fixture
def sqlite_settings(sqlite_template: Path, tmp_path: Path) -> DatabaseSettings:
    path = tmp_path / "armature.db"
    shutil.copyfile(sqlite_template, path)
    return DatabaseSettings(url=f"sqlite:///{path}")


@pytest.fixture
def postgres_settings(postgres_server: PostgresServer, postgres_template: str) -> Iterator[DatabaseSettings]:
    with postgres_server.database(postgres_template) as url:
        yield DatabaseSettings(url=url)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> DatabaseSettings:
    """A migrated, empty database; the test runs once on each kind."""
    return request.getfixturevalue(f"{request.param}_settings")


@pytest.fixture
def engine(database: DatabaseSettings) -> Iterator[Engine]:
    with ExitStack() as stack:
        engine = make_engine(database)
        stack.callback(engine.dispose)
        yield engine


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_session_factory(engine)
