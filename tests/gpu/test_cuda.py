"""The recipes and guided generation on a GPU, held against the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from armature.contracts.artifacts import AdapterMetadata
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest
from armature.inference.runner import ModelRunner
from armature.inference.transformers.runner import TransformersRunner
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.probe import check_probe
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.checkpoints.task_vector import read_task_vector
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.recipe_context import as_input
from tests.support.recipe_world import World, arm_spec, evaluation_spec, harm_spec, tiny_world
from tests.support.rows import TwinRows, join_rows
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = "cuda:0"
NAMES = ("empathy", "truthfulness", "helpfulness")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def dense(folder: Path) -> torch.Tensor:
    """A task vector as one dense vector, tensors in name order."""
    vector = read_task_vector(folder)
    parts = []
    for _, tensor in sorted(vector.tensors.items()):
        part = torch.zeros(tensor.shape).flatten()
        part[tensor.indices] = tensor.values
        parts.append(part)
    return torch.cat(parts)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_harm_vector_points_where_the_cpu_s_does(world: World, method: str) -> None:
    training = {"method": method, "steps": 6, "batch_size": 3, "learning_rate": 5e-3}
    on_cpu, on_gpu = (
        dense(world.run(harm_spec(training=training), device=device).outputs[0].path) for device in ("cpu", CUDA)
    )
    assert torch.cosine_similarity(on_cpu, on_gpu, dim=0) > 0.98


@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_arm_trained_on_the_gpu_serves_on_the_cpu(world: World, method: str) -> None:
    trained = world.run(arm_spec(conflict={"method": method, "scope": "shared"}), device=CUDA).outputs[0]
    assert isinstance(trained.metadata, AdapterMetadata)
    model = load_adapter(load_model(world.artifacts["base"].path), trained.path)
    check_probe(model, trained.metadata.canary)


def test_an_arm_s_options_mean_the_same_on_the_gpu(world: World) -> None:
    """Dropout too: its mask is a function of coordinates, not of the device."""
    training = {"steps": 6, "batch_size": 4, "micro_batch_size": 3, "learning_rate": 1e-2}
    spec = arm_spec(adapter={"dropout": 0.3}, training=training, validation={"share": 0.34, "every": 2})
    spec["training"]["gradient_checkpointing"] = True
    on_cpu, on_gpu = (world.run(spec, device=device).outputs[0].metadata.validation for device in ("cpu", CUDA))
    for here, there in zip(on_cpu.points, on_gpu.points, strict=True):
        assert there.loss == pytest.approx(here.loss, rel=1e-2)


def test_a_bfloat16_backbone_trains_on_the_gpu(world: World) -> None:
    spec = arm_spec()
    spec["training"] = spec["training"] | {"dtype": "bfloat16"}
    trained = world.run(spec, device=CUDA).outputs[0]
    model = load_adapter(load_model(world.artifacts["base"].path), trained.path)
    check_probe(model, trained.metadata.canary)


def test_evaluation_runs_on_the_gpu(world: World) -> None:
    world.artifacts["harm"] = as_input(world.run(harm_spec(), device=CUDA).outputs[0])
    arm = arm_spec(harm_vector="harm", harm_scale=1.0)
    world.artifacts["arm"] = as_input(world.run(arm, device=CUDA).outputs[0])
    spec = evaluation_spec(harm_vector="harm", harm_scale=1.0, arm="arm")
    on_cpu, on_gpu = (world.run(spec, device=device).outputs[0].metadata.metrics for device in ("cpu", CUDA))
    assert on_gpu["nll"] == pytest.approx(on_cpu["nll"], rel=1e-3)


@pytest.mark.parametrize(
    "start",
    [lambda model: TransformersRunner(model, len(NAMES)), lambda model: LeanRunner(LeanModel(model), len(NAMES))],
)
def test_both_streams_agree_with_the_cpu(start: Callable[[PeftModel], ModelRunner]) -> None:
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    weights = [[1.0, 0.0, 0.0], None, [0.2, 0.3, 0.5]]
    logits = []
    for device in ("cpu", CUDA):
        rows = TwinRows(start(add_random_adapter(tiny_llama(seed=3), list(NAMES)).to(device)))
        first = join_rows(rows, prompts, weights)
        second = rows.step(torch.tensor([20, 21, 22], device=device))
        logits.append([part.cpu() for step in (first, second) for part in step])
    for on_cpu, on_gpu in zip(*logits, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["hf", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guided_generation_on_the_gpu(dtype: torch.dtype, backend: str) -> None:
    adapted = add_random_adapter(tiny_llama(seed=3).to(CUDA, dtype), list(NAMES))
    runnable = LeanModel(adapted) if backend == "lean" else adapted
    model = GuidedModel(runnable, frozenset({-1}), 259, NAMES, "reference")
    requests = [
        GuidedRequest(prompt=(5, 6, 7 + i), max_tokens=12, seed=i, guide=Guide((0.2, 0.3, 0.5), 2.0, 3.0))
        for i in range(16)
    ]
    answers = generate_guided(model, requests, max_slots=6)
    assert [len(answer) for answer in answers] == [12] * 16
    assert answers == generate_guided(model, requests, max_slots=6)
