"""Resources of a worker that runs attempts in this process, on SQLite and a store in memory."""

import pytest

from armature.settings import JobSettings
from armature_worker.runtime.resources import WorkerResources
from armature_worker.settings import WorkerServiceSettings, WorkerSettings
from tests.support.attempts import SPEC, FlakyStore
from tests.support.jobs import add_job, add_tenant


@pytest.fixture
def database(sqlite_settings):
    """SQLite is enough here: the job protocol's own tests run on both databases."""
    return sqlite_settings


@pytest.fixture
def store():
    return FlakyStore()


@pytest.fixture
def tenant(sessions):
    return add_tenant(sessions)


@pytest.fixture
def resources(database, sessions, store, tmp_path):
    settings = WorkerServiceSettings(
        database=database,
        jobs=JobSettings(lease_seconds=2, retry_delay=0),
        worker=WorkerSettings(work_dir=tmp_path / "work", device="cpu"),
    )
    return WorkerResources(settings, sessions, store, is_stopping=lambda: False)


@pytest.fixture
def job_id(sessions, tenant):
    return add_job(sessions, tenant, spec=SPEC, request_id="req-7")
