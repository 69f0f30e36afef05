"""A small arm.train in several processes, the way a worker runs it: real processes, gloo between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from armature.contracts.specs import parse_spec
from armature.modeling.adapters.files import WEIGHTS
from armature_worker.context.ports import RecipeResult
from armature_worker.distributed.launcher import ProcessGroupLauncher
from tests.support.recipe_context import LocalContext
from tests.support.recipe_world import DATA, World, arm_spec


def training_spec(processes: int, **training: Any) -> dict[str, Any]:
    """Conflicts resolved over everything, two micro-batches a process and step, a few steps."""
    steps = {"steps": 4, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 1e-2, "checkpoint_every": 2}
    return arm_spec(
        conflict={"method": "pcgrad", "scope": "all"},
        training={**steps, "processes": processes, **training},
    )


def run_group(world: World, spec: Mapping[str, Any], device: str = "cpu", **ports: Any) -> RecipeResult:
    """Run the spec's recipe in its processes, on ``device`` or, for CUDA, on one device each."""
    context: LocalContext = world.context(spec, DATA, **ports)
    parsed = parse_spec(dict(spec))
    devices = [f"cuda:{rank}" if device == "cuda" else device for rank in range(parsed.processes)]
    folder = context.workdir.with_name(f"{context.workdir.name}-private")
    folder.mkdir()
    with ProcessGroupLauncher(parsed, context, folder, devices) as launcher:
        return launcher.run()


def adapter(result: RecipeResult) -> dict[str, torch.Tensor]:
    """The trained tensors by name."""
    return load_adapter_tensors(result.outputs[0].path)


def load_adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors by name."""
    return load_file(folder / WEIGHTS)
