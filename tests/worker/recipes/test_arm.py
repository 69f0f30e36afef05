"""arm.train: what it learns, bit-identical resuming, guards, and the adapter's metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from armature.contracts.artifacts import AdapterMetadata, CheckpointMetadata
from armature.contracts.specs import parse_spec
from armature.contracts.specs.size_defaults import Schedule
from armature.errors import AdapterBaseMismatch, InvalidDataset, NonFiniteLoss, TrainingStalled
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from armature.modeling.adapters.probe import check_probe
from armature.modeling.checkpoints.loading import load_model, load_safe_model, load_tokenizer
from armature_worker.context.ports import JobCancelled, RecipeResult, WorkerStopping
from armature_worker.recipes.arm import run
from armature_worker.training.arm_trainer import learning_rate
from tests.support.recipe_context import LocalContext, as_input
from tests.support.recipe_world import ATTRIBUTES, DATA, World, arm_spec, harm_spec, tiny_world
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = tiny_world(tmp_path_factory.mktemp("world"))
    world.artifacts["vector"] = as_input(world.run(harm_spec()).outputs[0])
    return world


def metadata_of(result: RecipeResult) -> AdapterMetadata:
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, AdapterMetadata)
    return metadata


def contents(result: RecipeResult) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in result.outputs[0].path.iterdir()}


@pytest.mark.parametrize("form", ["reference", "sum", "mean"])
def test_outputs(form: str, world: World) -> None:
    spec = arm_spec(harm_vector="vector", harm_scale=2.0, loss={"form": form, "beta": 0.5})
    result = world.run(spec)
    metadata, folder = metadata_of(result), result.outputs[0].path
    assert set(contents(result)) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "armature.json",
        "conflicts.csv",
    }
    assert json.loads((folder / "armature.json").read_bytes()) == metadata.model_dump(mode="json")
    base = world.artifacts["base"].manifest.metadata
    assert isinstance(base, CheckpointMetadata)
    assert metadata.backbone.model_dump() == {
        "model_digest": base.model_digest,
        "tokenizer_digest": base.tokenizer_digest,
        "harm_vector_digest": world.artifacts["vector"].digest,
        "harm_scale": 2.0,
    }
    assert (metadata.attributes, metadata.loss_form, metadata.beta) == (
        ATTRIBUTES,
        form,
        dict.fromkeys(ATTRIBUTES, 0.5),
    )
    safe = load_safe_model(world.artifacts["base"].path, world.artifacts["vector"].path, 2.0)
    arm = load_adapter(safe, folder)
    check_probe(arm, metadata.canary)
    assert metadata.parameters == sum(
        w.numel() for layer in adapter_layers(arm).values() for w in layer.weights("default")
    )
    assert {parent.role for parent in result.outputs[0].parents} == {"base_model", "harm_vector", "pairs"}


@torch.no_grad()
def margins(result: RecipeResult, world: World, preference: list[float]) -> torch.Tensor:
    """Margins of the empathic over the helpful answer under the ARM, per prompt, relative to the base."""
    base = world.artifacts["base"].path
    arm, tokenizer = load_adapter(load_model(base), result.outputs[0].path), load_tokenizer(base)

    def reward(prompt: str, answer: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer(prompt).input_ids + tokenizer(answer).input_ids])
        start = len(tokenizer(prompt).input_ids)
        with preferences(arm, torch.tensor([preference])):
            guided = arm(ids).logits.log_softmax(-1)
        with arm.disable_adapter():
            plain = arm(ids).logits.log_softmax(-1)
        return (guided - plain)[0, start - 1 : -1].gather(-1, ids[0, start:, None]).sum()

    rows = [row for row in DATA["pairs"] if row["labels"]["empathy"] == 0]
    return torch.stack([reward(r["prompt"], r["responses"][0]) - reward(r["prompt"], r["responses"][1]) for r in rows])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scope"), [("sum", "shared"), ("pcgrad", "shared"), ("aligned", "all"), ("upgrad", "shared")]
)
def test_the_preference_decides_which_answer_wins(method: str, scope: str, world: World) -> None:
    training = {"steps": 60, "batch_size": 6, "learning_rate": 2e-2}
    spec = arm_spec(training=training, conflict={"method": method, "scope": scope})
    context = world.context(spec, DATA)
    result = run(parse_spec(spec), context)
    assert (margins(result, world, [1.0, 0.0]) > 0.5).all()
    assert (margins(result, world, [0.0, 1.0]) < -0.5).all()
    for name in ATTRIBUTES:
        losses = [step[f"loss/{name}"] for step in context.metrics if f"loss/{name}" in step]
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)
        assert sum(losses[-20:]) / 20 < 0.65
    assert any("cosine/shared" in step for step in context.metrics)


def stop_at(step: int, error: type[Exception]) -> Callable[[str, int], None]:
    def check(phase: str, at: int) -> None:
        if (phase, at) == ("train", step):
            raise error

    return check


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sum", "pcgrad"])
@pytest.mark.parametrize(
    ("killed_at", "resumes_at", "error"), [(3, 2, JobCancelled), (5, 5, WorkerStopping), (4, 4, WorkerStopping)]
)
def test_killed_and_resumed_is_uninterrupted_to_the_bit(
    method: str, killed_at: int, resumes_at: int, error: type[Exception], world: World, tmp_path: Path
) -> None:
    spec = arm_spec(conflict={"method": method}, adapter={"dropout": 0.2, "layers": "all"})
    spec["training"] = spec["training"] | {"warmup_steps": 2, "weight_decay": 0.1}
    whole = contents(world.run(spec))
    ports: dict[str, Any] = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(error):
        world.run(spec, **ports, on_progress=stop_at(killed_at, error))
    context = world.context(spec, DATA, **ports)
    resumed = run(parse_spec(spec), context)
    assert ("info", f"resumed after step {resumes_at}") in context.messages
    assert len(context.metrics) == 6 - resumes_at
    assert contents(resumed) == whole


def test_same_seed_same_bytes_and_another_seed_another_adapter(world: World) -> None:
    first, second, other = (contents(world.run(arm_spec(seed=seed))) for seed in (1, 1, 2))
    assert first == second
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]


def test_checkpoints_hold_the_adapter_and_no_base_weights(world: World, tmp_path: Path) -> None:
    sizes: list[int] = []

    class Recording(LocalContext):
        def save_checkpoint(self, step: int, path: Path) -> None:
            assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json", ".csv"}
            sizes.append(sum(file.stat().st_size for file in path.iterdir()))

    spec = arm_spec()
    context = world.context(spec, DATA)
    result = run(parse_spec(spec), Recording(context.workdir, context.artifacts, context.files))
    assert len(sizes) == 2
    assert max(sizes) < 3.5 * 4 * metadata_of(result).parameters + 50_000


def test_a_tie_is_no_label_and_an_attribute_without_labels_is_named(world: World) -> None:
    tied = [row | {"labels": {"empathy": 0, "helpfulness": None}} for row in DATA["pairs"]]
    with pytest.raises(InvalidDataset, match="helpfulness") as caught:
        world.run(arm_spec(), {"pairs": tied})
    assert caught.value.param == "spec.attributes.1"
    half = [*tied[:-1], DATA["pairs"][-1]]
    world.run(arm_spec(), {"pairs": half})
    unlabelled = [row | {"labels": {"empathy": 0}} for row in DATA["pairs"]]
    with pytest.raises(InvalidDataset, match="helpfulness"):
        world.run(arm_spec(), {"pairs": unlabelled})


@pytest.mark.bad_input(45)
def test_rows_cut_before_their_answer_are_counted(world: World) -> None:
    spec = arm_spec()
    spec["training"] = spec["training"] | {"max_length": 30}
    long = DATA["pairs"][0] | {"prompt": "x" * 60}
    context = world.context(spec, {"pairs": [long, *DATA["pairs"]]})
    run(parse_spec(spec), context)
    assert ("warn", "1 of 7 pairs have no answer within max_length") in context.messages
    with pytest.raises(InvalidDataset, match="max_length"):
        world.run(spec, {"pairs": [long]})


def test_a_vector_of_another_base_is_refused(world: World) -> None:
    world.import_model(save_tiny_checkpoint(world.folder / "other", tiny_llama(7)), "other")
    with pytest.raises(AdapterBaseMismatch) as caught:
        world.run(arm_spec(base_model="other", harm_vector="vector"))
    assert caught.value.param == "spec.harm_vector"


def test_diverging_training_stops_with_the_step(world: World) -> None:
    huge = tiny_llama()
    with torch.no_grad():
        huge.model.norm.weight.fill_(3e38)
    folder = save_tiny_checkpoint(world.folder / "huge", huge)
    world.artifacts["huge"] = replace(world.artifacts["base"], path=folder)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        world.run(arm_spec(base_model="huge"))


def test_a_rate_that_moves_nothing_is_a_stalled_run(world: World) -> None:
    spec = arm_spec(training={"steps": 2, "batch_size": 2, "learning_rate": 1e-46})
    with pytest.raises(TrainingStalled):
        world.run(spec)


def test_pairs_that_are_told_apart_without_doubt_are_no_stalled_run(world: World) -> None:
    """With a loss of 1e-28 the gradient is exactly zero in float32, step after step."""
    training = {"steps": 40, "batch_size": 3, "learning_rate": 3e-2}
    context = world.context(spec := arm_spec(attributes=ATTRIBUTES[:1], loss={"beta": 1000.0}, training=training), DATA)
    run(parse_spec(spec), context)
    assert [metrics["gradient_norm"] for metrics in context.metrics if "gradient_norm" in metrics][-5:] == [0.0] * 5


def test_an_adapter_that_no_gradient_reaches_is_a_stalled_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from armature_worker.training import reward_margins as arm_margins

    monkeypatch.setattr(arm_margins, "pair_margins", lambda rewards: rewards.view(-1, 2).sum(1) * 0)
    with pytest.raises(TrainingStalled, match="for 3 steps, up to step 3"):
        world.run(arm_spec())


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(Schedule(learning_rate=1.0, steps=10), 4, step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.1
