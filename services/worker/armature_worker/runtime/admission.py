"""Lease devices for a job before it is claimed, so that a job that waits for one spends no attempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.artifacts import ArtifactManifest, CheckpointMetadata
from armature.contracts.file_scans import FileScan
from armature.contracts.specs import parse_inputs, parse_spec
from armature.contracts.specs.base import ArtifactInput, FileInput
from armature.db import jobs
from armature.db.models import Artifact, File, Job
from armature.errors import ArmatureError, InsufficientDevices, InsufficientMemory
from armature.logging import get_logger
from armature_worker.host.devices import (
    CPU,
    DeviceTable,
    MemoryProbe,
    Needs,
    NoDeviceFree,
    fixed_memory,
    list_devices,
    probe_memory,
)
from armature_worker.host.memory_estimate import RowLengths, estimate_memory
from armature_worker.settings import WorkerSettings

_log = get_logger(__name__)

_ROWS_IN = (
    "pairs", "harmful_pairs", "safe_pairs", "benign_pairs", "guard_pairs",
    "harmful_prompts", "harmful_openings", "benign_prompts", "prompts",
)  # fmt: skip
"""Roles of the rows that decide a job's memory."""
_CHARACTERS_PER_TOKEN, _LARGE_VOCABULARY = 2, 8192
"""At least so many characters of ordinary text make a token of a large vocabulary; a small one may spell letters."""
_TEMPLATE_TOKENS = 64
"""What a chat template writes around a prompt."""


@dataclass(frozen=True)
class Admission:
    """The devices leased for a job, one per process, or the error that keeps it from this worker for good."""

    devices: tuple[str, ...] = ()
    refusal: ArmatureError | None = None


def memory_probe(settings: WorkerSettings) -> MemoryProbe:
    """Choose how memory is measured: by the devices, or by the operator's ``memory_bytes``."""
    return probe_memory if settings.memory_bytes is None else partial(fixed_memory, settings.memory_bytes)


def device_tables(settings: WorkerSettings) -> dict[str, DeviceTable]:
    """Build the device table of each queue; jobs of the queue ``cpu`` never take a GPU."""
    probe = memory_probe(settings)
    devices = {"gpu": list_devices(settings.device) if "gpu" in settings.queues else (CPU,), "cpu": (CPU,)}
    return {queue: DeviceTable(names, settings.work_dir, probe) for queue, names in devices.items()}


@contextmanager
def admit(
    job_id: str, sessions: sessionmaker[Session], tables: Mapping[str, DeviceTable], delay: float
) -> Iterator[Admission | None]:
    """Hold the devices that a queued job needs while the block runs.

    Yields None if the job is no longer queued or must wait; the relay then resends it after ``delay`` seconds.
    """
    with sessions.begin() as session:
        job = session.get(Job, job_id)
        needs = needs_of(session, job) if job is not None and job.state == "queued" else None
    if job is None or needs is None:
        yield None
        return
    with ExitStack() as stack:
        admission: Admission | None
        try:
            admission = Admission(stack.enter_context(tables[job.queue].lease(needs)))
        except (InsufficientDevices, InsufficientMemory) as error:
            admission = Admission(refusal=error)
        except NoDeviceFree as error:
            _log.info("job deferred", job_id=job_id, reason=str(error))
            with sessions.begin() as session:
                jobs.defer(session, job_id, delay, error.waiting_for)
            admission = None
        yield admission


def needs_of(session: Session, job: Job) -> Needs:
    """Estimate how many devices the job needs, and how much memory of each."""
    spec = parse_spec(job.spec)
    models = _models(session, job)
    base = models.get("backbone_model") or models.get("base_model")  # the base of a separate ARM is not loaded
    if spec.one_model_at_a_time:
        base = max(models.values(), key=lambda model: model.parameters, default=None)
    if base is None:
        return Needs(spec.processes)
    estimate = estimate_memory(spec, base, models.get("arm_backbone"), lengths_of(session, job, base))
    return Needs(spec.processes, estimate.total, estimate.advice)


def lengths_of(session: Session, job: Job, base: CheckpointMetadata) -> RowLengths | None:
    """Bound the tokens of the rows that a job trains on or answers, from the scans of its files.

    None if none of its files was scanned. The worker measures tokens once it has the tokenizer.
    """
    used = {role: value for role, value in parse_inputs(job.inputs).items() if role in _ROWS_IN}
    longest = [_longest_row(session, value.sha256, base) for value in used.values() if isinstance(value, FileInput)]
    known = [one for one in longest if one is not None]
    if not known or len(known) < len(used):
        return None
    return RowLengths(max(one.prompt for one in known), max(one.answer for one in known))


def _longest_row(session: Session, sha256: str, base: CheckpointMetadata) -> RowLengths | None:
    scan = session.scalars(select(File.scan).where(File.sha256 == sha256, File.scan.is_not(None)).limit(1)).first()
    if scan is None:
        return None
    characters = FileScan.model_validate(scan).statistics.characters
    each = _CHARACTERS_PER_TOKEN if base.vocab_size >= _LARGE_VOCABULARY else 1
    answers = [characters[column].max for column in ("completion", "response") if column in characters]
    prompt = characters["prompt"].max if "prompt" in characters else 0
    return RowLengths(_TEMPLATE_TOKENS + prompt // each, 1 + max(answers, default=0) // each)


def _models(session: Session, job: Job) -> dict[str, CheckpointMetadata]:
    """Read the metadata of the checkpoints among the job's inputs, by role."""
    ids = {role: value.id for role, value in parse_inputs(job.inputs).items() if isinstance(value, ArtifactInput)}
    rows = {row.id: row.manifest for row in session.scalars(select(Artifact).where(Artifact.id.in_(ids.values())))}
    artifacts = {role: ArtifactManifest.model_validate(rows[id]).metadata for role, id in ids.items() if id in rows}
    return {role: metadata for role, metadata in artifacts.items() if isinstance(metadata, CheckpointMetadata)}
