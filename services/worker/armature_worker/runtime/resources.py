"""What a worker process holds for all of its jobs: settings, connections, devices and recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.specs import SPECS
from armature.db.session import DATABASE_OUTAGES, make_engine, make_session_factory
from armature.logging import get_logger
from armature.startup import startup_without_gc
from armature.storage import open_store
from armature.storage.base import ArtifactStore
from armature_worker.context.ports import Recipe
from armature_worker.host.devices import DeviceTable
from armature_worker.recipes import load_recipe
from armature_worker.runtime.admission import device_tables
from armature_worker.settings import WorkerServiceSettings

_log = get_logger(__name__)


@dataclass(frozen=True)
class WorkerResources:
    """Resources of one worker process, shared by the jobs that it runs one after another."""

    settings: WorkerServiceSettings
    sessions: sessionmaker[Session]
    store: ArtifactStore
    is_stopping: Callable[[], bool]
    load_recipe: Callable[[str], Recipe] = load_recipe
    retire: Callable[[], object] = lambda: None
    """Called after a device fault: this process can not use its device any more and must be replaced."""

    @classmethod
    def open(
        cls, settings: WorkerServiceSettings, is_stopping: Callable[[], bool], retire: Callable[[], object]
    ) -> WorkerResources:
        """Build all resources from ``settings``. Connects to nothing yet."""
        sessions = make_session_factory(make_engine(settings.database))
        return cls(settings, sessions, open_store(settings.store), is_stopping, retire=retire)

    def warm_up(self) -> None:
        """Import the recipes of the worker's queues and connect to the database before the first job."""
        with startup_without_gc():
            for kind, spec in SPECS.items():
                if spec.queue in self.settings.worker.queues:
                    self.load_recipe(kind)
            try:
                with self.sessions() as session:
                    session.execute(select(1))
            except DATABASE_OUTAGES as error:
                _log.warning("database unavailable during warm-up", error=type(error).__name__)

    @cached_property
    def devices(self) -> dict[str, DeviceTable]:
        """The device table of each queue."""
        return device_tables(self.settings.worker)
