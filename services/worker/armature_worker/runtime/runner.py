"""Run one attempt at a job: claim, fetch inputs, run the recipe, upload, end in one transaction.

Whatever happens, the attempt ends in exactly one step of the job protocol. If even that step can not be written, the
lease runs out and the relay takes over. Nothing here knows of Celery.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

import armature
from armature.contracts.artifacts import BlobRef, Producer
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import JobSpec, parse_spec
from armature.contracts.specs.base import BaseSpec
from armature.datasets.scan import scan_rows
from armature.db import jobs
from armature.db.fair_share import next_job, take_turn
from armature.db.jobs import DatasetPublication, Publication
from armature.db.models import Job
from armature.db.session import DATABASE_OUTAGES
from armature.db.transitions import Lease
from armature.errors import ArmatureError, DeviceFault, StorageUnavailable
from armature.logging import get_logger
from armature.storage.artifacts import file_sha256, publish_folder
from armature.storage.job_checkpoints import checkpoints_prefix, delete_checkpoints
from armature_worker.context.ports import (
    DatasetOutput,
    JobCancelled,
    JobPaused,
    LeaseLost,
    Output,
    RecipeResult,
    WorkerStopping,
)
from armature_worker.distributed.launcher import ProcessGroupLauncher
from armature_worker.host.failures import explain
from armature_worker.host.workdir import private_directory
from armature_worker.runtime.admission import Admission, admit, memory_probe
from armature_worker.runtime.heartbeat import Heartbeat
from armature_worker.runtime.job_context import JobContext, Machine
from armature_worker.runtime.resources import WorkerResources

Ending = Callable[[Session], bool]
"""The step of the job protocol that ends an attempt; returns False if it did not apply."""

_log = get_logger(__name__)


def execute(ticket: str, resources: WorkerResources) -> None:
    """Claim the job that is next for ``ticket`` (:mod:`armature.db.fair_share`) and run one attempt.

    No failure of the job is raised: its outcome is in the database.
    """
    with ExitStack() as devices:
        try:
            with resources.sessions.begin() as session:
                job_id = next_job(session, ticket) or ticket
            delay = resources.settings.jobs.retry_delay
            admission = devices.enter_context(admit(job_id, resources.sessions, resources.devices, delay))
            attempt = None if admission is None else Attempt.claim(job_id, admission, resources)
        except DATABASE_OUTAGES as error:
            _log.warning("database unavailable, job not claimed", job_id=ticket, error=type(error).__name__)
            return  # the relay sends the job again
        if attempt is None:
            _log.info("job not claimable", job_id=job_id)
            return
        attempt.run()


class Attempt:
    """One attempt at a claimed job, from its lease to the step of the job protocol that ends it."""

    def __init__(self, job: Job, admission: Admission, resources: WorkerResources) -> None:
        self._job, self._admission, self._resources = job, admission, resources
        self._lease = Lease(job.id, job.fence)
        self._heartbeat = Heartbeat(resources.sessions, self._lease, resources.settings.jobs, resources.is_stopping)

    @classmethod
    def claim(cls, job_id: str, admission: Admission, resources: WorkerResources) -> Attempt | None:
        """Claim a queued job; None if it is claimed already, still backs off, or its tenant is at its limit."""
        worker = f"{socket.gethostname()}:{os.getpid()}"
        with resources.sessions.begin() as session:
            if not take_turn(session, job_id):
                return None
            job = jobs.claim(session, job_id, worker, resources.settings.jobs.lease_seconds)
        return None if job is None else cls(job, admission, resources)

    def run(self) -> None:
        """Run the recipe while the heartbeat keeps the lease, then write how the attempt ended."""
        job = self._job
        with bound_contextvars(job_id=job.id, attempt=job.attempt, kind=job.kind, request_id=job.request_id):
            _log.info("job started", devices=self._admission.devices)
            with self._heartbeat:
                try:
                    self._end(self._work())
                except LeaseLost:
                    _log.warning("lease lost")
            self._remove_checkpoints()
            _release_memory()

    def _work(self) -> Ending:
        """Run the job, or refuse it; return the ending that the outcome calls for."""
        if self._admission.refusal is not None:
            return self._fail(explain(self._admission.refusal))
        try:
            with private_directory(self._resources.settings.worker.work_dir, self._job.id) as folder:
                return self._publish(folder)
        except LeaseLost:
            raise
        except JobCancelled:
            return partial(jobs.finish_cancelled, lease=self._lease)
        except JobPaused:
            return partial(jobs.finish_paused, lease=self._lease)
        except WorkerStopping:
            return partial(jobs.release, lease=self._lease, reason="the worker shut down", refund=True)
        except Exception as error:
            return self._retry_or_fail(explain(error))

    def _publish(self, folder: Path) -> Ending:
        """Fetch the inputs, run the recipe, upload the outputs; the ending makes them visible."""
        spec = parse_spec(self._job.spec)
        context = self._make_context(folder)
        context.fetch_inputs(self._job.inputs)
        result = self._run_recipe(spec, context, folder)
        context.progress("publish", 0, len(result.outputs))
        outputs = self._upload(spec, result.outputs)
        datasets = [_describe_dataset(made) for made in result.datasets]
        return partial(
            jobs.publish, lease=self._lease, outputs=outputs, register_as=result.register_as, datasets=datasets
        )

    def _make_context(self, folder: Path) -> JobContext:
        settings = self._resources.settings
        probe = memory_probe(settings.worker)
        machine = Machine(self._admission.devices[0], settings.imports, probe, settings.worker.endpoints)
        return JobContext(self._job, self._resources.store, self._heartbeat, folder, machine)

    def _run_recipe(self, spec: JobSpec, context: JobContext, folder: Path) -> RecipeResult:
        """Run the recipe in this process, or in one process per device if the job has several."""
        devices = self._admission.devices
        if len(devices) == 1:
            return self._resources.load_recipe(self._job.kind)(spec, context)
        with ProcessGroupLauncher(spec, context, folder, devices) as launcher:
            return launcher.run()

    def _upload(self, spec: BaseSpec, outputs: Iterable[Output]) -> list[Publication]:
        store, job = self._resources.store, self._job
        producer = Producer(kind=job.kind, spec=spec.provenance(), version=armature.__version__)
        publications = []
        for output in outputs:
            manifest, ref = publish_folder(
                store, job.tenant_id, output.path, metadata=output.metadata, parents=output.parents, producer=producer
            )
            publications.append(Publication(output.name, ref, manifest))
        return publications

    def _retry_or_fail(self, error: ArmatureError) -> Ending:
        """Requeue the job with a growing delay if the error is retryable and attempts remain; else fail it."""
        if isinstance(error, DeviceFault):
            self._resources.retire()
        job = self._job
        if not error.retryable or job.attempt >= job.max_attempts:
            return self._fail(error)
        delay = self._resources.settings.jobs.retry_delay * 2 ** (job.attempt - 1)
        return partial(jobs.release, lease=self._lease, reason=error.message, delay=delay)

    def _fail(self, error: ArmatureError) -> Ending:
        return partial(jobs.fail, lease=self._lease, error=ErrorObject.of(error, self._job.request_id))

    def _end(self, ending: Ending) -> None:
        """Write ``ending``; a cancellation that arrived first ends the job as cancelled instead."""
        try:
            self._heartbeat.flush()
            applied = self._heartbeat.write(ending)
        except LeaseLost:
            raise
        except JobCancelled:
            applied = False
        except Exception as error:  # such as a Conflict: the name that it registers is taken
            applied = self._heartbeat.write(self._fail(explain(error)))
        if not (applied or self._heartbeat.write(partial(jobs.finish_cancelled, lease=self._lease))):
            raise LeaseLost(self._job.id)

    def _remove_checkpoints(self) -> None:
        """Delete the checkpoints of a job that succeeded; a failed one keeps them for a retry.

        An outage here is harmless: the relay's sweep finds what is left.
        """
        job = self._job
        try:
            with self._resources.sessions.begin() as session:
                succeeded = session.get_one(Job, job.id).state == "succeeded"
            if succeeded:
                delete_checkpoints(self._resources.store, checkpoints_prefix(job.tenant_id, job.id))
        except (StorageUnavailable, *DATABASE_OUTAGES) as error:
            _log.warning("checkpoints not removed", error=type(error).__name__)


def _describe_dataset(made: DatasetOutput) -> DatasetPublication:
    """Describe a data set by its file, which was uploaded as part of an output, and the scan of its rows."""
    file = BlobRef(path=made.path.name, sha256=file_sha256(made.path), size=made.path.stat().st_size)
    with made.path.open("rb") as rows:
        return DatasetPublication(made.name, file, scan_rows(rows))


def _release_memory() -> None:
    """Collect garbage and empty torch's allocator cache, which would keep the device's memory."""
    gc.collect()
    torch = sys.modules.get("torch")  # a job that did not import torch holds no device memory
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
