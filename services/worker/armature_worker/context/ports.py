"""The ports of a recipe: local inputs, progress, cancellation, checkpoints. No database, queue, store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from armature.contracts.artifacts import ArtifactManifest, ArtifactMetadata, Parent
from armature.contracts.datasets import BadRows
from armature.contracts.jobs import EventLevel
from armature.settings import EndpointSettings, ImportSettings
from armature_worker.context.process_group import ProcessGroup


class JobCancelled(Exception):
    """Raised in a recipe, by its context, after the job was cancelled."""


class LeaseLost(Exception):
    """Raised in a recipe when another attempt may own the job: stop and publish nothing."""


class Interrupted(Exception):
    """Raised in a recipe when the attempt must end and a later one continues: save a checkpoint first."""


class WorkerStopping(Interrupted):
    """Raised when the worker shuts down: the job goes back to the queue at once."""


class JobPaused(Interrupted):
    """Raised after a request to pause the job."""


@dataclass(frozen=True)
class LocalArtifact:
    """An input artifact on local disk, verified."""

    path: Path
    manifest: ArtifactManifest
    digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of a long recipe: a folder of safetensors and JSON, and the steps done by then."""

    step: int
    path: Path


@dataclass(frozen=True)
class Output:
    """An artifact to publish: its files in ``path``, and the metadata that describes them."""

    name: str
    path: Path
    metadata: ArtifactMetadata
    parents: list[Parent] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetOutput:
    """A data set to make from a file of rows in an output's folder."""

    name: str
    path: Path


@dataclass(frozen=True)
class RecipeResult:
    """The outputs of a recipe; ``register_as`` names a base model made from the output ``checkpoint``."""

    outputs: list[Output]
    register_as: str | None = None
    datasets: list[DatasetOutput] = field(default_factory=list)


class RecipeContext(Protocol):
    """What a recipe sees of its job.

    :class:`armature_worker.runtime.job_context.JobContext` implements it for workers,
    :class:`armature_worker.context.local.LocalContext` on local folders.
    """

    job_id: str
    workdir: Path
    """Private and empty at the start, removed at the end whatever happens."""
    artifacts: Mapping[str, LocalArtifact]
    """Input artifacts by role (a base model is its checkpoint)."""
    files: Mapping[str, Path]
    """Input data sets and files by role."""
    label_attributes: Mapping[str, str]
    """By role, the attribute of a data set's judgements that name none themselves."""
    bad_rows: Mapping[str, BadRows]
    """By role, whether a bad row of a data set ends the job or is left out."""
    device: str
    """``cpu`` or ``cuda:N``, leased by the worker."""
    process_group: ProcessGroup
    """The processes that run the job together, this one included."""
    imports: ImportSettings
    """The operator's settings for where base models may be imported from."""
    endpoints: Mapping[str, EndpointSettings]
    """The chat endpoints that jobs may ask, by name."""

    def free_memory(self) -> Mapping[str, int]:
        """Measure the bytes free now on the job's device and the host (``cpu``), within the operator's limit."""

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report progress; cheap enough to call every step.

        Raises:
            JobCancelled: The job was cancelled.
            LeaseLost: Another attempt may own the job.
            Interrupted: The worker shuts down or the job is to pause. The next attempt continues from the newest
                checkpoint, so save one and let the exception pass.
        """

    def log(self, message: str, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """Add a line to the job's events."""

    def save_checkpoint(self, step: int, path: Path) -> None:
        """Upload ``path`` as the job's newest checkpoint, in place of the previous one; fenced."""

    def load_checkpoint(self) -> Checkpoint | None:
        """Download and verify the newest checkpoint of this job; None if there is none."""


Recipe = Callable[[Any, RecipeContext], RecipeResult]
"""``(spec, context) -> result``; raises :class:`armature.errors.ArmatureError` for errors that a client can act on."""
