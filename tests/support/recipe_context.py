"""A recipe's context on local folders: outputs become inputs of the next recipe, without database, queue or store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armature.contracts.artifacts import ArtifactManifest, BlobRef, Producer
from armature.contracts.base import digest
from armature.settings import ImportSettings
from armature_worker.context import Checkpoint, LocalArtifact, Output
from armature_worker.ranks import Ranks, SingleRank


@dataclass
class LocalContext:
    """Implements :class:`armature_worker.context.RecipeContext`.

    ``on_progress`` is called with (phase, step) before each report counts: raise in it to stop the recipe there.
    """

    workdir: Path
    artifacts: Mapping[str, LocalArtifact] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    label_attributes: Mapping[str, str] = field(default_factory=dict)
    imports: ImportSettings = field(default_factory=ImportSettings)
    job_id: str = "job_local"
    device: str = "cpu"
    ranks: Ranks = field(default_factory=SingleRank)
    checkpoints: Path | None = None
    """Where checkpoints are kept; give two contexts the same folder to resume."""
    on_progress: Callable[[str, int], None] = lambda phase, step: None
    messages: list[tuple[str, str]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.on_progress(phase, step)
        assert 0 <= step <= total
        if phase not in self.phases:
            self.phases.append(phase)
        if metrics is not None:
            self.metrics.append(dict(metrics))

    def log(self, message: str, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        self.messages.append((level, message))

    def save_checkpoint(self, step: int, path: Path) -> None:
        if self.checkpoints is None:
            return
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.copytree(path, self.checkpoints / f"{step}")

    def load_checkpoint(self) -> Checkpoint | None:
        saved = sorted(self.checkpoints.iterdir()) if self.checkpoints and self.checkpoints.exists() else []
        return Checkpoint(int(saved[-1].name), saved[-1]) if saved else None


def as_input(output: Output) -> LocalArtifact:
    """An output as the next recipe gets it: with the manifest that publishing would write."""
    names = sorted(path.relative_to(output.path).as_posix() for path in output.path.rglob("*") if path.is_file())
    manifest = ArtifactManifest(
        kind=output.metadata.type,
        files=[BlobRef(path=name, sha256=digest(name), size=0) for name in names],
        parents=output.parents,
        metadata=output.metadata,
        producer=Producer(kind="test", spec={}, version="0"),
    )
    return LocalArtifact(output.path, manifest, manifest.digest())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A data set's file: one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
