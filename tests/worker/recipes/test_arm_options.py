"""arm.train's options: held-out pairs, figures by step, precision, recomputed activations, backbones, guards."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.specs import parse_spec
from armature.errors import InvalidDataset, TokenizerMismatch
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import PBLoRALinear, preferences
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature_worker.context.ports import RecipeResult, WorkerStopping
from armature_worker.recipes.arm import run
from armature_worker.training import arm_trainer as arm_training
from armature_worker.training.reward_margins import compute_margins
from tests.support.recipe_context import LocalContext
from tests.support.recipe_world import ATTRIBUTES, DATA, World, arm_spec, tiny_world
from tests.support.tiny_models import byte_tokenizer, save_tiny_checkpoint, tiny_llama

HELD_OUT = [row | {"prompt": f"{row['prompt']} so sad."} for row in DATA["pairs"][:4]]
PAIR_NAME = "empathy/helpfulness"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def train(world: World, spec: dict[str, Any], **data: list[dict[str, Any]]) -> tuple[RecipeResult, LocalContext]:
    context = world.context(spec, {**DATA, **data})
    return run(parse_spec(spec), context), context  # type: ignore[arg-type]


def tensors(result: RecipeResult) -> dict[str, torch.Tensor]:
    return load_file(result.outputs[0].path / "adapter_model.safetensors")


def metadata_of(result: RecipeResult) -> AdapterMetadata:
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, AdapterMetadata)
    return metadata


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def training(**changes: Any) -> dict[str, Any]:
    return {**arm_spec()["training"], **changes}


@torch.no_grad()
def log_prob(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Sum the log-probabilities of the answer and the end of sequence, token by token."""
    ids = [*tokenizer(prompt).input_ids, *tokenizer(answer).input_ids, tokenizer.eos_token_id]
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(tokenizer(prompt).input_ids)
    return math.fsum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids)))


def test_validation_figures_are_those_of_the_saved_adapter(world: World) -> None:
    spec = arm_spec(validation_pairs="v", validation={"every": 2}, training=training(micro_batch_size=3))
    result, context = train(world, spec, validation_pairs=HELD_OUT)
    validation = metadata_of(result).validation
    assert validation is not None
    assert (validation.step, validation.pairs) == (6, 4)
    assert [point.preference for point in validation.points] == [
        {"empathy": 1.0, "helpfulness": 0.0},
        {"empathy": 0.0, "helpfulness": 1.0},
        {"empathy": 0.5, "helpfulness": 0.5},
    ]
    base = world.artifacts["base"].path
    arm, tokenizer = load_adapter(load_model(base), result.outputs[0].path), load_tokenizer(base)
    for point in validation.points:
        losses: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
        for row in HELD_OUT:
            rewards = []
            for answer in row["responses"]:
                with preferences(arm, torch.tensor([list(point.preference.values())])):
                    guided = log_prob(arm, tokenizer, row["prompt"], answer)
                with arm.disable_adapter():
                    rewards.append(guided - log_prob(arm, tokenizer, row["prompt"], answer))
            for name, better in row["labels"].items():
                losses[name].append(math.log1p(math.exp(-2.0 * (rewards[better] - rewards[1 - better]))))
        for name in ATTRIBUTES:
            assert point.loss[name] == pytest.approx(sum(losses[name]) / 4, rel=1e-3)
            assert point.accuracy[name] == sum(loss < math.log(2) for loss in losses[name]) / 4
    rows = read_csv(result.outputs[0].path / "validation.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert float(rows[-1]["loss/centroid/empathy"]) == pytest.approx(validation.points[-1].loss["empathy"], rel=1e-4)
    reported = [step for step in context.metrics if "validation/accuracy/centroid/empathy" in step]
    assert len(reported) == 3
    assert "validate" in context.phases
    assert {parent.role for parent in result.outputs[0].parents} == {"base_model", "pairs", "validation_pairs"}


def test_validation_changes_nothing_of_what_is_learned(world: World) -> None:
    shape = {"dropout": 0.3}
    plain, _ = train(world, arm_spec(adapter=shape))
    judged, _ = train(
        world, arm_spec(adapter=shape, validation_pairs="v", validation={"every": 1}), validation_pairs=HELD_OUT
    )
    expected = tensors(plain)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(judged).items())


def test_a_share_of_the_prompts_can_be_held_out(world: World) -> None:
    result, _ = train(world, arm_spec(validation={"share": 0.34}))
    validation = metadata_of(result).validation
    assert validation is not None
    assert validation.pairs == 2  # one prompt of three, with its two pairs
    one = [row | {"prompt": "ann is sad."} for row in DATA["pairs"]]
    with pytest.raises(InvalidDataset, match="none would be left") as caught:
        train(world, arm_spec(validation={"share": 0.1}), pairs=one)
    assert caught.value.param == "spec.validation.share"


@pytest.mark.parametrize("method", ["sum", "mgda"])
def test_cosines_are_on_record_at_every_step_whatever_the_method(method: str, world: World) -> None:
    result, context = train(world, arm_spec(conflict={"method": method, "record_every": 2}))
    rows = read_csv(result.outputs[0].path / "conflicts.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert list(rows[0])[1:] == [
        f"{group}/{PAIR_NAME}" for group in ("all", "shared", "conditioned", "attention", "mlp")
    ]
    for row, metrics in zip(rows, context.metrics[1::2], strict=True):
        for half in ("shared", "conditioned"):
            value = metrics[f"cosine/{half}/{PAIR_NAME}"]
            assert -1.0001 <= value <= 1.0001
            assert float(row[f"{half}/{PAIR_NAME}"]) == pytest.approx(value, rel=1e-4)
            assert metrics[f"cosine/{half}"] == pytest.approx(value)


def test_figures_by_step_survive_a_restart(world: World, tmp_path: Path) -> None:
    spec = arm_spec(validation_pairs="v", validation={"every": 2}, adapter={"dropout": 0.2, "layers": "all"})
    spec["training"] = training(micro_batch_size=2, gradient_checkpointing=True)
    data = {**DATA, "validation_pairs": HELD_OUT}

    def stop(phase: str, step: int) -> None:
        if (phase, step) == ("validate", 4):
            raise WorkerStopping

    whole = world.run(spec, data)
    ports: dict[str, Any] = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(WorkerStopping):
        world.run(spec, data, on_progress=stop, **ports)
    resumed = world.run(spec, data, **ports)
    for path in whole.outputs[0].path.iterdir():
        assert (resumed.outputs[0].path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.trap(10)
def test_recomputed_activations_give_the_same_adapter(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"plain": 0, "recomputed": 0}
    add_delta, now = PBLoRALinear.add_delta, "plain"

    def count(layer: PBLoRALinear, *args: Any) -> torch.Tensor:
        passes[now] += layer.training  # the self-test's are others
        return add_delta(layer, *args)

    monkeypatch.setattr(PBLoRALinear, "add_delta", count)
    shape = {"dropout": 0.3, "layers": "all"}
    plain, _ = train(world, arm_spec(adapter=shape))
    now = "recomputed"
    recomputed, _ = train(world, arm_spec(adapter=shape, training=training(gradient_checkpointing=True)))
    expected = tensors(plain)
    for name, tensor in tensors(recomputed).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    assert passes["recomputed"] > 1.8 * passes["plain"]


def test_a_bfloat16_backbone_trains_a_float32_adapter(world: World) -> None:
    spec = arm_spec(training=training(dtype="bfloat16", steps=40))
    result, context = train(world, spec)
    assert {tensor.dtype for tensor in tensors(result).values()} == {torch.float32}
    assert metadata_of(result).canary.dtype == "float32"  # as the backbone is stored, and so served
    losses = [metrics["loss"] for metrics in context.metrics]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert metadata_of(train(world, arm_spec())[0]).canary.dtype == "float32"


def test_a_separate_backbone_is_the_arm_s_own(world: World) -> None:
    own = world.import_model(save_tiny_checkpoint(world.folder / "small", tiny_llama(9, layers=1)), "small")
    result, _ = train(world, arm_spec(backbone="separate", backbone_model="small"))
    metadata = metadata_of(result)
    assert metadata.backbone_kind == "separate"
    assert metadata.backbone.model_digest == own.manifest.metadata.model_digest  # type: ignore[union-attr]
    assert json.loads((result.outputs[0].path / "adapter_config.json").read_bytes())["target_modules"]
    load_adapter(load_model(own.path), result.outputs[0].path)
    assert {parent.role for parent in result.outputs[0].parents} == {"base_model", "backbone_model", "pairs"}


@pytest.mark.trap(3)
def test_a_backbone_of_other_ids_is_refused_before_loading(world: World) -> None:
    folder = save_tiny_checkpoint(world.folder / "other-ids")
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]  # equal in size, and two ids are swapped
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "model.safetensors").unlink()
    world.artifacts["other-ids"] = replace(world.artifacts["base"], path=folder)
    with pytest.raises(TokenizerMismatch, match="'a' is") as caught:
        train(world, arm_spec(backbone="separate", backbone_model="other-ids"))
    assert caught.value.param == "spec.backbone_model"


def test_pairs_of_one_answer_twice_are_dropped_and_counted(world: World) -> None:
    twice = DATA["pairs"][0] | {"responses": [" same.", " same."]}
    _, context = train(world, arm_spec(), pairs=[twice, *DATA["pairs"]])
    assert ("warn", "1 of 7 pairs have the same answer twice, within max_length") in context.messages
    with pytest.raises(InvalidDataset, match="two different answers") as caught:
        train(world, arm_spec(), pairs=[twice])
    assert caught.value.param == "spec.pairs"


@pytest.mark.parametrize(("per", "distinct"), [("row", 3), ("step", 1)])
def test_the_pairs_of_a_step_have_preferences_of_their_own_or_one(
    per: str, distinct: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []

    def watch(model: Any, form: Any, batch: Any, preferences: torch.Tensor, *rest: Any) -> torch.Tensor:
        drawn.append(preferences)
        return compute_margins(model, form, batch, preferences, *rest)

    monkeypatch.setattr(arm_training, "compute_margins", watch)
    train(world, arm_spec(preferences={"per": per, "vertices": 0.0, "centroid": 0.0}))
    assert [len(step.unique(dim=0)) for step in drawn] == [distinct] * 6
    assert len(torch.cat(drawn).unique(dim=0)) == 6 * distinct


def test_one_attribute_alone_has_no_conflicts_to_record(world: World) -> None:
    result, context = train(
        world, arm_spec(attributes=["empathy"], conflict={"method": "cagrad"}, validation={"share": 0.34})
    )
    assert not (result.outputs[0].path / "conflicts.csv").exists()
    assert not any("cosine/shared" in metrics for metrics in context.metrics)
    validation = metadata_of(result).validation
    assert validation is not None
    assert [point.preference for point in validation.points] == [{"empathy": 1.0}, {"empathy": 1.0}]
