"""Runs recipes in this process, no job twice: results stay in a folder, so a batch can resume."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armature.contracts.artifacts import ArtifactManifest
from armature.contracts.base import canonical_json, digest
from armature.contracts.specs import JobSpec
from armature.settings import ImportSettings
from armature_worker.context.local import LocalContext, as_input
from armature_worker.context.ports import LocalArtifact
from armature_worker.recipes import load_recipe

_RESULT = "result.json"


@dataclass(frozen=True)
class Done:
    """A finished job, of this run or an earlier one: its artifacts by name, and its metrics step by step."""

    artifacts: dict[str, LocalArtifact]
    metrics: list[dict[str, float]]

    def report(self) -> dict[str, Any]:
        """Read the report of an evaluation, details included."""
        report: dict[str, Any] = json.loads((self.artifacts["report"].path / "report.json").read_bytes())
        return report


class Laboratory:
    """A folder of data sets, models and results.

    Specs name their inputs by digest, so a result depends on its spec and the code alone. Fields at their default do
    not count, so results stay valid when a later version adds a field. After a change of what the recipes compute,
    start with an empty folder.

    Args:
        folder: Created if missing.
        progress: Called with a line for each job that runs.
    """

    def __init__(self, folder: Path, progress: Callable[[str], None] = lambda line: None) -> None:
        self._folder, self._progress = folder.resolve(), progress
        self._artifacts: dict[str, LocalArtifact] = {}
        self._files: dict[str, Path] = {}

    def keep(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Write a data set and return its id for specs."""
        content = b"".join(canonical_json(row) + b"\n" for row in rows)
        id = digest(content.decode())
        self._files[id] = path = self._folder / "data" / f"{id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return id

    def make(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the folder of this name, filled by ``make`` if it does not exist yet."""
        folder = self._folder / "made" / name
        if not folder.exists():
            draft = _fresh(folder)
            make(draft)
            draft.rename(folder)
        return folder

    def show(self, name: str, figure: Path) -> None:
        """Copy a figure to ``figures/<name>``, to be found without its digest."""
        target = self._folder / "figures" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(figure, target)

    def run(self, spec: JobSpec) -> Done:
        """Run the spec's job, or read the results of an earlier run."""
        folder = self._folder / "jobs" / digest(_identity(spec))
        if not folder.exists():
            started = time.monotonic()
            draft = _fresh(folder)
            self._work(spec, draft)
            draft.rename(folder)
            self._progress(f"{spec.kind} {time.monotonic() - started:.1f} s")
        result = json.loads((folder / _RESULT).read_bytes())
        done = Done({name: _open(folder / name, value) for name, value in result["outputs"].items()}, result["metrics"])
        self._artifacts |= {artifact.digest: artifact for artifact in done.artifacts.values()}
        return done

    def _work(self, spec: JobSpec, folder: Path) -> None:
        ids = {role: reference.id for role, reference in spec.references().items()}
        context = LocalContext(
            folder,
            artifacts={role: self._artifacts[id] for role, id in ids.items() if id in self._artifacts},
            files={role: self._files[id] for role, id in ids.items() if id in self._files},
            imports=ImportSettings(roots=[self._folder]),
        )
        outputs = load_recipe(spec.kind)(spec, context).outputs
        result = {
            "spec": _identity(spec),
            "outputs": {output.name: as_input(output).manifest.model_dump(mode="json") for output in outputs},
            "metrics": context.metrics,
        }
        (folder / _RESULT).write_text(json.dumps(result))


def _identity(spec: JobSpec) -> dict[str, Any]:
    return {"kind": spec.kind, **spec.model_dump(mode="json", exclude_defaults=True)}


def _open(folder: Path, manifest: Mapping[str, Any]) -> LocalArtifact:
    return LocalArtifact(folder, ArtifactManifest.model_validate(manifest), digest(manifest))


def _fresh(folder: Path) -> Path:
    """Make an empty folder beside ``folder``, to be renamed to it when complete."""
    draft = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft
