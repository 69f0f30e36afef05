"""A :class:`armature_worker.context.ports.RecipeContext` on the artifact store and the heartbeat."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from armature.contracts.datasets import BadRows
from armature.contracts.jobs import EventLevel, JobCheckpoint
from armature.contracts.specs import SPECS, parse_inputs
from armature.contracts.specs.base import ArtifactInput, BaseSpec
from armature.db import jobs
from armature.db.models import Job
from armature.db.transitions import Event, Lease
from armature.errors import ArtifactCorrupt, StorageUnavailable
from armature.logging import get_logger
from armature.settings import EndpointSettings, ImportSettings
from armature.storage.artifacts import fetch_artifact, fetch_object
from armature.storage.base import ArtifactStore
from armature.storage.job_checkpoints import (
    checkpoints_prefix,
    delete_checkpoints,
    download_checkpoint,
    upload_checkpoint,
)
from armature_worker.context.ports import Checkpoint, LeaseLost, LocalArtifact
from armature_worker.context.process_group import ProcessGroup, SingleProcess
from armature_worker.host.devices import MemoryProbe, free_memory
from armature_worker.runtime.heartbeat import Heartbeat
from armature_worker.runtime.progress_meter import ProgressMeter

_log = get_logger(__name__)


@dataclass(frozen=True)
class Machine:
    """What a job gets from its worker: a device, import settings, a memory probe, endpoints."""

    device: str
    imports: ImportSettings
    probe: MemoryProbe
    endpoints: Mapping[str, EndpointSettings] = field(default_factory=dict)


class JobContext:
    """The context of a recipe that runs in a worker."""

    def __init__(self, job: Job, store: ArtifactStore, heartbeat: Heartbeat, folder: Path, machine: Machine) -> None:
        self.job_id = job.id
        self.workdir = folder / "work"
        self.workdir.mkdir()
        self.artifacts: Mapping[str, LocalArtifact] = {}
        self.files: Mapping[str, Path] = {}
        self.label_attributes: Mapping[str, str] = {}
        self.bad_rows: Mapping[str, BadRows] = {}
        self.device, self.imports, self.endpoints = machine.device, machine.imports, machine.endpoints
        self.process_group: ProcessGroup = SingleProcess()
        self._probe = machine.probe
        self._lease = Lease(job.id, job.fence)
        self._store = store
        self._heartbeat = heartbeat
        self._folder = folder
        self._prefix = checkpoints_prefix(job.tenant_id, job.id)
        self._meter = ProgressMeter(SPECS.get(job.kind, BaseSpec).all_phases())
        self._checkpoint = JobCheckpoint.model_validate(job.checkpoint) if job.checkpoint else None

    def fetch_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Download and verify the job's inputs, by role."""
        artifacts: dict[str, LocalArtifact] = {}
        files: dict[str, Path] = {}
        attributes: dict[str, str] = {}
        bad_rows: dict[str, BadRows] = {}
        for number, (role, given) in enumerate(parse_inputs(inputs).items()):
            self.progress("download", number, len(inputs))
            path = self._folder / given.type / role
            if isinstance(given, ArtifactInput):
                manifest = fetch_artifact(self._store, given.ref, path)
                artifacts[role] = LocalArtifact(path, manifest, given.ref.digest)
            else:
                fetch_object(self._store, given.key, path, given.sha256)
                files[role], bad_rows[role] = path, given.on_bad_rows
                if given.attribute is not None:
                    attributes[role] = given.attribute
        self.artifacts, self.files = artifacts, files
        self.label_attributes, self.bad_rows = attributes, bad_rows

    def free_memory(self) -> Mapping[str, int]:
        """See the port."""
        return free_memory(self.device, self._probe)

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """See the port."""
        self._heartbeat.report(self._meter.measure(phase, step, total), metrics)
        self._heartbeat.check()

    def log(self, message: str, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """See the port."""
        self._heartbeat.log(Event(message, level, data=dict(data or {})))

    def save_checkpoint(self, step: int, path: Path) -> None:
        """See the port. During an outage of the store this checkpoint is skipped; the run goes on."""
        prefix = f"{self._prefix}{self._lease.fence}-{step}/"
        try:
            saved = upload_checkpoint(self._store, prefix, step, path)
        except StorageUnavailable as error:
            self.log(f"checkpoint of step {step} not saved: {error.message}", "warn")
            return
        pointer = saved.model_dump(mode="json")
        if not self._heartbeat.write(partial(jobs.save_checkpoint, lease=self._lease, checkpoint=pointer)):
            raise LeaseLost(self.job_id)
        self.log(f"checkpoint of step {step} saved", data={"step": step, "bytes": saved.size()})
        previous, self._checkpoint = self._checkpoint, saved
        if previous is not None and previous.prefix != saved.prefix and previous.prefix.startswith(self._prefix):
            self._delete(previous)  # a checkpoint of the job that this one retries stays that job's

    def load_checkpoint(self) -> Checkpoint | None:
        """See the port. A damaged checkpoint is ignored: the recipe starts from the beginning."""
        if self._checkpoint is None:
            return None
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=self._folder))
        try:
            download_checkpoint(self._store, self._checkpoint, folder)
        except ArtifactCorrupt as error:
            self.log(f"checkpoint of step {self._checkpoint.step} ignored: {error.message}", "warn")
            return None
        return Checkpoint(self._checkpoint.step, folder)

    def _delete(self, checkpoint: JobCheckpoint) -> None:
        try:
            delete_checkpoints(self._store, checkpoint.prefix)
        except StorageUnavailable:  # deleted with the others when the job ends
            _log.warning("old checkpoint not deleted", step=checkpoint.step)
