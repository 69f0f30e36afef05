"""What a recipe sees of the world: local inputs, progress, cancellation, checkpoints. No session, queue or store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from armature.contracts.artifacts import ArtifactManifest, ArtifactMetadata, Parent
from armature.contracts.jobs import EventLevel
from armature.settings import ImportSettings
from armature_worker.context.process_group import ProcessGroup


class JobCancelled(Exception):
    """Raised inside a recipe, by its context, when the job was cancelled."""


class LeaseLost(Exception):
    """Raised inside a recipe when another attempt owns the job: stop, publish nothing."""


class Interrupted(Exception):
    """Raised inside a recipe when the attempt must end and another one will go on: save a checkpoint first."""


class WorkerStopping(Interrupted):
    """The worker shuts down: the job goes back to the queue at once."""


class JobPaused(Interrupted):
    """The job's owner wants it to wait."""


@dataclass(frozen=True)
class LocalArtifact:
    """An input artifact, downloaded and verified."""

    path: Path
    manifest: ArtifactManifest
    digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A saved position of a long recipe: a folder of safetensors and JSON, and the step it stands at."""

    step: int
    path: Path


@dataclass(frozen=True)
class Output:
    """An artifact to publish: the recipe wrote its files to ``path`` and describes them."""

    name: str
    path: Path
    metadata: ArtifactMetadata
    parents: list[Parent] = field(default_factory=list)


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe hands back. ``register_as`` names a base model made from the output called ``checkpoint``."""

    outputs: list[Output]
    register_as: str | None = None


class RecipeContext(Protocol):
    """The ports of a running job. ``armature_worker.runtime.runner`` has the real one, tests a local one."""

    job_id: str
    workdir: Path
    """Private and empty at the start, removed at the end whatever happens."""
    artifacts: Mapping[str, LocalArtifact]
    """Input artifacts by role (a base model is its checkpoint)."""
    files: Mapping[str, Path]
    """Input data sets and files by role."""
    label_attributes: Mapping[str, str]
    """By role, what a data set's judgements are about that name no attribute themselves."""
    device: str
    """``cpu`` or ``cuda:N``, handed out by the worker."""
    process_group: ProcessGroup
    """The processes that run the job together, this one included."""
    imports: ImportSettings
    """Where base models may be imported from; the operator's choice, from the worker's settings."""

    def free_memory(self) -> Mapping[str, int]:
        """Bytes that are free now, on the job's device and on the host (``cpu``), within what the operator allows."""

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report where the job is; cheap enough to call every step.

        Raises:
            JobCancelled: Somebody cancelled the job.
            LeaseLost: Another attempt owns it.
            Interrupted: The worker shuts down or the job is to pause; the next attempt goes on from the newest
                checkpoint, so save one and let the exception pass.
        """

    def log(self, message: str, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """Add a line to the job's events."""

    def save_checkpoint(self, step: int, path: Path) -> None:
        """Upload a folder as the job's newest checkpoint, replacing the one before; fenced."""

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint of this job, downloaded and verified, or None."""


Recipe = Callable[[Any, RecipeContext], RecipeResult]
"""``(spec, context) -> result``; raises :class:`armature.errors.ArmatureError` for failures a user can act on."""
