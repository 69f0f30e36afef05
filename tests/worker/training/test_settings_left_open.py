"""What a spec leaves null is chosen by the model's size and the free memory, and the result says what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from armature.contracts.artifacts import AdapterMetadata, CheckpointMetadata, TaskVectorMetadata, TrainedWith
from armature.contracts.specs import parse_spec
from armature.contracts.specs.harm_vector import HarmTraining
from armature.contracts.specs.size_defaults import SIZE_DEFAULTS, size_defaults
from armature.modeling.adapters.files import read_adapter
from armature.modeling.checkpoints.task_vector import read_task_vector
from armature_worker.host.memory_estimate import RowLengths, estimate_memory
from armature_worker.training.micro_batches import fit_micro_batch
from tests.support.recipe_context import LocalContext
from tests.support.recipe_world import World, arm_spec, harm_spec, tiny_world

LAPTOP = 16 << 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("free", "size"), [(None, 12), (10_000, 12), (1000, 6), (400, 3), (200, 1), (1, 1)])
def test_the_largest_half_that_fits_is_taken(tmp_path: Path, free: int | None, size: int) -> None:
    context = LocalContext(tmp_path, memory={} if free is None else {"cpu": free})
    assert fit_micro_batch(context, 12, lambda rows: 100 * rows) == size
    told = [message for _, message in context.messages]
    assert told == ([] if size == 12 else [f"{size} of 12 rows of a step fit into memory at once"])


def test_every_size_has_a_rate_and_larger_models_have_no_larger_one() -> None:
    for method, rows in SIZE_DEFAULTS.items():
        assert [row.parameters for row in rows] == sorted({row.parameters for row in rows})
        assert rows[-1].parameters == float("inf")
        rates = [size_defaults(method, 10**digits).learning_rate for digits in range(4, 13)]
        assert rates == sorted(rates, reverse=True)
    assert HarmTraining().schedule(135_000_000) == (2e-5, 32)
    assert HarmTraining(method="lora").schedule(7_000_000_000) == (2e-4, 32)
    assert HarmTraining(steps=7, learning_rate=0.5).schedule(135_000_000) == (0.5, 7)


def free_for(world: World, spec: dict[str, Any], lengths: RowLengths, rows: int) -> dict[str, int]:
    """Free memory that just holds a job with micro-batches of ``rows``."""
    training = spec["training"] | {"micro_batch_size": rows}
    metadata = world.artifacts["base"].manifest.metadata
    assert isinstance(metadata, CheckpointMetadata)
    needs = estimate_memory(parse_spec(spec | {"training": training}), metadata, lengths=lengths).total
    return {"cpu": int(needs / 0.9) + 16}


OPEN = {"steps": 3, "batch_size": 3, "learning_rate": None, "micro_batch_size": None}


@pytest.mark.slow
def test_a_harm_vector_fits_its_micro_batch_and_says_so(world: World) -> None:
    spec = harm_spec(training=OPEN)
    lengths = RowLengths(len("how to zorble gate?"), len(" zorble the gate.") + 1)
    narrow = world.run(spec, memory=free_for(world, spec, lengths, 2))
    wide = world.run(spec)
    for result, size in ((narrow, 2), (wide, 3)):
        metadata = result.outputs[0].metadata
        assert isinstance(metadata, TaskVectorMetadata)
        assert metadata.trained_with == TrainedWith(learning_rate=1e-3, steps=3, micro_batch_size=size)
    one, other = (read_task_vector(result.outputs[0].path) for result in (narrow, wide))
    assert one.norm == pytest.approx(other.norm, rel=1e-3)


@pytest.mark.slow
def test_an_arm_fits_its_micro_batch_and_says_so(world: World) -> None:
    spec = arm_spec(training=OPEN | {"checkpoint_every": 2})
    lengths = RowLengths(len("ann is sad."), len(" try a rest.") + 1)
    narrow = world.run(spec, memory=free_for(world, spec, lengths, 2))
    wide = world.run(spec)
    for result, size in ((narrow, 2), (wide, 3)):
        metadata = result.outputs[0].metadata
        assert isinstance(metadata, AdapterMetadata)
        assert metadata.trained_with == TrainedWith(learning_rate=3e-3, steps=3, micro_batch_size=size)
    layers = [read_adapter(result.outputs[0].path).layers for result in (narrow, wide)]
    for name, weights in layers[0].items():
        for mine, theirs in zip(weights, layers[1][name], strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_of_a_harm_vector_are_one_step(world: World, size: int) -> None:
    """Rows of unequal lengths: the step's loss is the mean over its tokens, however it is cut."""
    spec = harm_spec(training={"steps": 2, "batch_size": 3, "learning_rate": 1e-2}, selection={"density": 1.0})
    cut = harm_spec(**{**spec, "training": spec["training"] | {"micro_batch_size": size}})
    whole, parts = (world.run(one) for one in (spec, cut))
    one, other = (read_task_vector(result.outputs[0].path) for result in (whole, parts))
    assert one.norm == pytest.approx(other.norm, rel=1e-3)
    assert one.norm > 0


def test_default_jobs_on_published_sizes_fit_a_laptop() -> None:
    """With a spec's defaults these asked for 18.3, 14.9, 38.6 and 53.3 GiB, and waited for ever."""
    lengths = RowLengths(prompt=120, answer=130)
    for parameters, vocab_size, hidden_size, layers in (
        (134_515_008, 49_152, 576, 30),
        (268_098_176, 262_144, 640, 18),
    ):
        base = CheckpointMetadata(
            model_digest="0" * 64,
            tokenizer_digest="0" * 64,
            weights_digest="0" * 64,
            architecture="LlamaForCausalLM",
            parameters=parameters,
            dtype="bfloat16",
            vocab_size=vocab_size,
            context_length=8192,
            chat_template=True,
            hidden_size=hidden_size,
            layers=layers,
        )
        for kind in ({"kind": "harm_vector.build", "harmful_pairs": "d"}, {"kind": "arm.train", "pairs": "d"}):
            spec = parse_spec({**kind, "base_model": "base"})
            assert estimate_memory(spec, base, lengths=lengths).total < LAPTOP / 2
            assert estimate_memory(spec, base).total < LAPTOP / 2
