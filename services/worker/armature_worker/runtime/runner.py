"""One attempt at a job: claim, inputs, recipe, blobs, manifests, and one transaction that ends it.

Whatever happens, the attempt ends in exactly one step of the job protocol; if even that can not be written, the lease
runs out and the relay takes over. Nothing here knows of Celery.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from structlog.contextvars import bound_contextvars

import armature
from armature.contracts.artifacts import Producer
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import SPECS, parse_spec
from armature.contracts.specs.base import BaseSpec
from armature.db import jobs
from armature.db.fair_share import next_job, take_turn
from armature.db.jobs import Publication
from armature.db.models import Job
from armature.db.session import DATABASE_OUTAGES, make_engine, make_session_factory
from armature.db.transitions import Lease
from armature.errors import ArmatureError, DeviceFault, StorageUnavailable
from armature.logging import get_logger
from armature.storage import open_store
from armature.storage.artifacts import publish_folder
from armature.storage.base import ArtifactStore
from armature.storage.job_checkpoints import checkpoints_prefix, delete_checkpoints
from armature_worker.context.ports import (
    JobCancelled,
    JobPaused,
    LeaseLost,
    Output,
    Recipe,
    RecipeResult,
    WorkerStopping,
)
from armature_worker.distributed.launcher import RankGroup
from armature_worker.host.devices import DeviceTable
from armature_worker.host.failures import explain
from armature_worker.host.workdir import private_directory
from armature_worker.recipes import load_recipe
from armature_worker.runtime.admission import Admission, admit, device_tables, memory_probe
from armature_worker.runtime.heartbeat import Heartbeat
from armature_worker.runtime.job_context import JobContext, Machine
from armature_worker.settings import WorkerServiceSettings

Ending = Callable[[Session], bool]
"""The step of the job protocol that ends an attempt; False if it did not apply."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Workplace:
    """What a worker process works with, for all of its jobs."""

    settings: WorkerServiceSettings
    sessions: sessionmaker[Session]
    store: ArtifactStore
    is_stopping: Callable[[], bool]
    load_recipe: Callable[[str], Recipe] = load_recipe
    retire: Callable[[], object] = lambda: None
    """Called when this process can not use its device any more: a fresh one has to take its place."""

    @classmethod
    def open(
        cls, settings: WorkerServiceSettings, is_stopping: Callable[[], bool], retire: Callable[[], object]
    ) -> Workplace:
        """Build everything from the settings. Connects to nothing."""
        sessions = make_session_factory(make_engine(settings.database))
        return cls(settings, sessions, open_store(settings.store), is_stopping, retire=retire)

    def warm_up(self) -> None:
        """Import the recipes of the worker's queues and connect to the database, so that no job waits for that."""
        queues = self.settings.worker.queues
        gc.disable()  # imports leave no garbage, and looking for it takes a third of their time
        for kind in (kind for kind, spec in SPECS.items() if spec.queue in queues):
            self.load_recipe(kind)
        try:
            with self.sessions() as session:
                session.execute(select(1))
        except DATABASE_OUTAGES as error:
            _log.warning("the database does not answer", error=type(error).__name__)
        gc.enable()
        gc.collect()
        gc.freeze()  # what is imported stays: looking through it after each job would take longer than many jobs

    @cached_property
    def devices(self) -> dict[str, DeviceTable]:
        """The devices behind each queue."""
        return device_tables(self.settings.worker)


def execute(ticket: str, workplace: Workplace) -> None:
    """Run the job that the ticket is worth, if there is one (:mod:`armature.db.fair_share`).

    Never raises for a job's sake: how it went is in the database.
    """
    with ExitStack() as stack:
        try:
            with workplace.sessions.begin() as session:
                job_id = next_job(session, ticket) or ticket
            delay = workplace.settings.jobs.retry_delay
            admission = stack.enter_context(admit(job_id, workplace.sessions, workplace.devices, delay))
            job = None if admission is None else _claim(job_id, workplace)
        except DATABASE_OUTAGES as error:
            _log.warning("the database does not answer a claim", job_id=ticket, error=type(error).__name__)
            return  # the relay sends the job again
        if admission is None or job is None:
            _log.info("the job is not to be had", job_id=job_id)
            return
        with bound_contextvars(job_id=job.id, attempt=job.attempt, kind=job.kind, request_id=job.request_id):
            _run(job, workplace, admission)


def _run(job: Job, workplace: Workplace, admission: Admission) -> None:
    _log.info("job started", devices=admission.devices)
    lease = Lease(job.id, job.fence)
    with Heartbeat(workplace.sessions, lease, workplace.settings.jobs, workplace.is_stopping) as heartbeat:
        try:
            _end(job, heartbeat, _attempt(job, workplace, heartbeat, admission))
        except LeaseLost:
            _log.warning("the lease is lost")
    _remove_checkpoints(job, workplace)
    _free_memory()


def _claim(job_id: str, workplace: Workplace) -> Job | None:
    worker = f"{socket.gethostname()}:{os.getpid()}"
    with workplace.sessions.begin() as session:
        if not take_turn(session, job_id):
            return None
        return jobs.claim(session, job_id, worker, workplace.settings.jobs.lease_seconds)


def _attempt(job: Job, workplace: Workplace, heartbeat: Heartbeat, admission: Admission) -> Ending:
    """Do the work; the ending that it earned."""
    lease = Lease(job.id, job.fence)
    if admission.refusal is not None:
        return _fail(job, explain(admission.refusal))
    try:
        with private_directory(workplace.settings.worker.work_dir, job.id) as folder:
            return _work(job, workplace, heartbeat, folder, admission.devices)
    except LeaseLost:
        raise
    except JobCancelled:
        return partial(jobs.finish_cancelled, lease=lease)
    except JobPaused:
        return partial(jobs.finish_paused, lease=lease)
    except WorkerStopping:
        return partial(jobs.release, lease=lease, reason="the worker shut down", refund=True)
    except Exception as error:
        return _failure(job, workplace, explain(error))


def _work(job: Job, workplace: Workplace, heartbeat: Heartbeat, folder: Path, devices: tuple[str, ...]) -> Ending:
    spec = parse_spec(job.spec)
    machine = Machine(devices[0], workplace.settings.imports, memory_probe(workplace.settings.worker))
    context = JobContext(job, workplace.store, heartbeat, folder, machine)
    context.fetch_inputs(job.inputs)
    result: RecipeResult
    if len(devices) == 1:
        result = workplace.load_recipe(job.kind)(spec, context)
    else:
        with RankGroup(spec, context, folder, devices) as group:
            result = group.run()
    context.progress("publish", 0, len(result.outputs))
    outputs = _upload(job, spec, workplace.store, result.outputs)
    return partial(jobs.publish, lease=Lease(job.id, job.fence), outputs=outputs, register_as=result.register_as)


def _upload(job: Job, spec: BaseSpec, store: ArtifactStore, outputs: Iterable[Output]) -> list[Publication]:
    producer = Producer(kind=job.kind, spec=spec.provenance(), version=armature.__version__)
    publications = []
    for output in outputs:
        manifest, ref = publish_folder(
            store, job.tenant_id, output.path, metadata=output.metadata, parents=output.parents, producer=producer
        )
        publications.append(Publication(output.name, ref, manifest))
    return publications


def _end(job: Job, heartbeat: Heartbeat, ending: Ending) -> None:
    """Write the ending; one that a cancellation overtook ends the job as cancelled."""
    lease = Lease(job.id, job.fence)
    try:
        heartbeat.flush()
        applied = heartbeat.write(ending)
    except LeaseLost:
        raise
    except JobCancelled:
        applied = False
    except Exception as error:  # such as a Conflict: the name that it registers is taken
        applied = heartbeat.write(_fail(job, explain(error)))
    if not (applied or heartbeat.write(partial(jobs.finish_cancelled, lease=lease))):
        raise LeaseLost(job.id)


def _failure(job: Job, workplace: Workplace, error: ArmatureError) -> Ending:
    """Another attempt later if that can help and one is left, else the failure."""
    if isinstance(error, DeviceFault):
        workplace.retire()
    if not error.retryable or job.attempt >= job.max_attempts:
        return _fail(job, error)
    delay = workplace.settings.jobs.retry_delay * 2 ** (job.attempt - 1)
    return partial(jobs.release, lease=Lease(job.id, job.fence), reason=error.message, delay=delay)


def _fail(job: Job, error: ArmatureError) -> Ending:
    return partial(jobs.fail, lease=Lease(job.id, job.fence), error=ErrorObject.of(error, job.request_id))


def _remove_checkpoints(job: Job, workplace: Workplace) -> None:
    """If the job has succeeded; else a retry may want them. What fails here is done by the relay's sweep."""
    try:
        with workplace.sessions.begin() as session:
            succeeded = session.get_one(Job, job.id).state == "succeeded"
        if succeeded:
            delete_checkpoints(workplace.store, checkpoints_prefix(job.tenant_id, job.id))
    except (StorageUnavailable, *DATABASE_OUTAGES) as error:
        _log.warning("checkpoints not removed", error=type(error).__name__)


def _free_memory() -> None:
    """Give the device's memory back; torch keeps what it freed, for itself alone."""
    gc.collect()
    torch = sys.modules.get("torch")  # a job that did not import it took nothing
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
