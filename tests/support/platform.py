"""Relay and workers as processes on real servers, for tests that kill them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.jobs import TERMINAL_STATES
from armature.db.models import Installation, Job
from armature.db.session import make_engine, make_session_factory
from armature.queue import make_celery
from armature.settings import DatabaseSettings, RedisSettings
from tests.support.jobs import add_job, add_tenant, get_job
from tests.support.processes import stop, wait_until
from tests.support.servers import RedisServer

LEASE_SECONDS = 3.0


@dataclass
class Platform:
    """Processes that share a database, a broker and a store below one folder."""

    folder: Path
    database: DatabaseSettings
    redis: RedisServer
    sessions: sessionmaker[Session]
    tenant: str
    celery: Celery
    max_tasks_per_child: int = 1
    resend_after: float = 10.0
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *module_and_flags: str, **settings: str) -> subprocess.Popen:
        """``python -m`` something, with the platform's settings and those given; its output goes to the folder."""
        env = {
            **os.environ,
            "ARMATURE_DATABASE__URL": self.database.url.get_secret_value(),
            "ARMATURE_REDIS__URL": self.redis.url,
            "ARMATURE_STORE__PATH": str(self.folder / "store"),
            "ARMATURE_JOBS__LEASE_SECONDS": str(LEASE_SECONDS),
            "ARMATURE_JOBS__RELAY_INTERVAL": "0.2",
            "ARMATURE_JOBS__RESEND_AFTER": str(self.resend_after),
            "ARMATURE_WORKER__WORK_DIR": str(self.folder / "work"),
            "ARMATURE_WORKER__DEVICE": "cpu",
            "ARMATURE_WORKER__PRELOAD": "false",  # its recipes need none of it
            "ARMATURE_WORKER__MAX_TASKS_PER_CHILD": str(self.max_tasks_per_child),
            **settings,
        }
        with (self.folder / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module_and_flags],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
        self.processes.append(process)
        return process

    def start_relay(self) -> subprocess.Popen:
        return self.start("armature_api.relay")

    def start_worker(self, **settings: str) -> subprocess.Popen:
        return self.start("armature_worker", "-I", "tests.support.worker_recipes", **settings)

    def submit(self, behaviour: str, **columns: Any) -> str:
        """A job of tests.support.worker_recipes."""
        notes = self.folder / f"{behaviour}-{time.time_ns()}.notes"
        spec = {"kind": "base_model.import", "name": behaviour, "source": {"type": "folder", "path": str(notes)}}
        return add_job(self.sessions, self.tenant, kind="test.work", spec=spec, **columns)

    def job(self, job_id: str) -> Job:
        return get_job(self.sessions, job_id)

    def notes(self, job_id: str) -> list[str]:
        path = Path(self.job(job_id).spec["source"]["path"])
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_note(self, job_id: str, note: str) -> None:
        wait_until(lambda: note in self.notes(job_id), what=f"note {note!r}")

    def finish(self, job_id: str, seconds: float = 40.0) -> Job:
        """Wait until the job is over."""
        wait_until(
            lambda: self.job(job_id).state in TERMINAL_STATES, seconds, what=f"end of {self.job(job_id).state} job"
        )
        return self.job(job_id)


@contextlib.contextmanager
def run_platform(folder: Path, database: DatabaseSettings, redis: RedisServer) -> Iterator[Platform]:
    """A platform without processes as yet; those that are started end with the block."""
    engine = make_engine(database)
    sessions = make_session_factory(engine)
    celery = make_celery(RedisSettings(url=redis.url))
    with sessions.begin() as session:
        session.add(Installation(id="test"))
    platform = Platform(folder, database, redis, sessions, add_tenant(sessions), celery)
    try:
        yield platform
    except BaseException:
        print((folder / "processes.log").read_text()[-8000:])
        raise
    finally:
        for process in platform.processes:
            process.terminate()  # all at once: each takes its time
        for process in platform.processes:
            stop(process)
        celery.close()
        engine.dispose()
