"""A recipe's context on local folders, without database, queue or store, for benchmarks and tests."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import armature
from armature.contracts.artifacts import ArtifactManifest, BlobRef, Producer
from armature.contracts.datasets import BadRows
from armature.contracts.jobs import EventLevel
from armature.settings import EndpointSettings, ImportSettings
from armature_worker.context.ports import Checkpoint, LocalArtifact, Output
from armature_worker.context.process_group import ProcessGroup, SingleProcess


@dataclass
class LocalContext:
    """A :class:`armature_worker.context.ports.RecipeContext` on local folders; records all reports.

    ``on_progress`` is called with (phase, step) before each report is recorded; raise in it to stop the recipe there.
    """

    workdir: Path
    artifacts: Mapping[str, LocalArtifact] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    label_attributes: Mapping[str, str] = field(default_factory=dict)
    bad_rows: Mapping[str, BadRows] = field(default_factory=dict)
    imports: ImportSettings = field(default_factory=ImportSettings)
    endpoints: Mapping[str, EndpointSettings] = field(default_factory=dict)
    job_id: str = "job_local"
    device: str = "cpu"
    process_group: ProcessGroup = field(default_factory=SingleProcess)
    memory: Mapping[str, int] = field(default_factory=dict)
    """Returned by :meth:`free_memory`; by default no device has free memory."""
    checkpoints: Path | None = None
    """Folder of the checkpoints (None: they are dropped); give two contexts the same folder to resume."""
    on_progress: Callable[[str, int], None] = lambda phase, step: None
    messages: list[tuple[str, str]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def free_memory(self) -> Mapping[str, int]:
        """See the port."""
        return self.memory

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """See the port."""
        self.on_progress(phase, step)
        assert 0 <= step <= total
        if phase not in self.phases:
            self.phases.append(phase)
        if metrics is not None:
            self.metrics.append(dict(metrics))

    def log(self, message: str, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """See the port."""
        self.messages.append((level, message))

    def save_checkpoint(self, step: int, path: Path) -> None:
        """See the port."""
        if self.checkpoints is None:
            return
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.copytree(path, self.checkpoints / f"{step}")

    def load_checkpoint(self) -> Checkpoint | None:
        """See the port."""
        saved = sorted(self.checkpoints.iterdir()) if self.checkpoints and self.checkpoints.exists() else []
        return Checkpoint(int(saved[-1].name), saved[-1]) if saved else None


def as_input(output: Output) -> LocalArtifact:
    """Turn an output into the next recipe's input, with a manifest as if the worker had published it."""
    manifest = ArtifactManifest(
        kind=output.metadata.type,
        files=[_describe(path, output.path) for path in sorted(output.path.rglob("*")) if path.is_file()],
        parents=output.parents,
        metadata=output.metadata,
        producer=Producer(kind="local", spec={}, version=armature.__version__),
    )
    return LocalArtifact(output.path, manifest, manifest.digest())


def _describe(path: Path, folder: Path) -> BlobRef:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return BlobRef(path=path.relative_to(folder).as_posix(), sha256=sha256, size=path.stat().st_size)
