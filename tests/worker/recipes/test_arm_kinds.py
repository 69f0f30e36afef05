"""arm.train with each kind of adapter: control after training, extension, export; and the mixture's loss."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from armature.contracts.artifacts import AdapterKind, AdapterMetadata
from armature.contracts.specs import parse_spec
from armature.errors import InvalidAdapter
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.checkpoints.loading import load_model
from armature_worker.context.ports import Output
from armature_worker.recipes.arm import run
from tests.support.recipe_context import as_input
from tests.support.recipe_world import ATTRIBUTES, DATA, World, arm_spec, tiny_world
from tests.support.stock_peft import stock_logits

pytestmark = pytest.mark.slow

IDS = [5, 9, 17, 42, 100, 7]
KINDS: list[AdapterKind] = ["modulated", "scaled"]
TRAINING = {"steps": 40, "batch_size": 6, "learning_rate": 2e-2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, and an ARM of each kind on it."""
    world = tiny_world(tmp_path_factory.mktemp("world"))
    for kind in KINDS:
        spec = arm_spec(adapter={"kind": kind}, training=TRAINING, validation_pairs="v")
        world.artifacts[kind] = as_input(world.run(spec, {"validation_pairs": DATA["pairs"]}).outputs[0])
    return world


def metadata_of(output: Any) -> AdapterMetadata:
    metadata = output.metadata if isinstance(output, Output) else output.manifest.metadata
    assert isinstance(metadata, AdapterMetadata)
    return metadata


@torch.no_grad()
def logits(world: World, folder: Path, p: list[float]) -> torch.Tensor:
    arm = load_adapter(load_model(world.artifacts["base"].path), folder)
    with preferences(arm, torch.tensor([p])):
        return arm(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_attribute_wins_where_it_alone_is_asked_for(kind: AdapterKind, world: World) -> None:
    metadata = metadata_of(world.artifacts[kind])
    assert metadata.adapter_kind == kind
    assert metadata.validation is not None
    for attribute, other in (ATTRIBUTES, ATTRIBUTES[::-1]):
        (point,) = [p for p in metadata.validation.points if p.preference[attribute] == 1.0]
        assert (point.accuracy[attribute], point.accuracy[other]) == (1.0, 0.0)


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_gives_the_logits_of_an_export(kind: AdapterKind, world: World, tmp_path: Path) -> None:
    spec = {"kind": "arm.export", "arm": kind, "preference": {"helpfulness": 3.0, "empathy": 1.0}}
    lora = world.run(spec).outputs[0]
    base = world.artifacts["base"].path
    expected = logits(world, world.artifacts[kind].path, [0.25, 0.75])
    torch.testing.assert_close(stock_logits(base, lora.path, IDS, tmp_path), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_is_added_by_its_row_alone(kind: AdapterKind, world: World) -> None:
    rows = [row | {"labels": {"brevity": row["labels"]["empathy"]}} for row in DATA["pairs"]]
    spec = {"kind": "arm.extend", "base_model": "base", "arm": kind, "attribute": "brevity", "pairs": "d", "seed": 3}
    output = world.run(spec | {"training": TRAINING}, {"pairs": rows}).outputs[0]
    assert metadata_of(output).adapter_kind == kind
    old, new = (load_file(f / "adapter_model.safetensors") for f in (world.artifacts[kind].path, output.path))
    for key, tensor in old.items():
        assert torch.equal(new[key][: len(tensor)], tensor)
        assert len(new[key]) == len(tensor) + key.endswith("W2")
    before, after = logits(world, world.artifacts[kind].path, [0.3, 0.7]), logits(world, output.path, [0.3, 0.7, 0.0])
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    assert not torch.allclose(logits(world, output.path, [0.0, 0.0, 1.0]), logits(world, output.path, [0.0, 1.0, 0.0]))


def test_only_weights_alone_are_merged_into_a_checkpoint(world: World) -> None:
    spec = {"kind": "checkpoint.export", "base_model": "base", "preference": {"empathy": 1.0}}
    folder = world.run(spec | {"arm": "scaled"}).outputs[0].path
    with torch.no_grad():
        merged = load_model(folder)(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(merged, logits(world, world.artifacts["scaled"].path, [1.0, 0.0]), atol=1e-4, rtol=0)
    with pytest.raises(InvalidAdapter, match="needs biases"):
        world.run(spec | {"arm": "modulated"})


def test_the_mixture_is_one_more_objective(world: World) -> None:
    spec = arm_spec(loss={"mixture": 0.5}, conflict={"method": "pcgrad"})
    context = world.context(spec, DATA)
    output = run(parse_spec(spec), context).outputs[0]  # type: ignore[arg-type]
    steps = [metrics for metrics in context.metrics if "loss" in metrics]
    assert all({"loss/mixture", "loss/empathy", "cosine/shared"} <= set(metrics) for metrics in steps)
    with (output.path / "conflicts.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert {"all/empathy/helpfulness", "all/empathy/mixture", "all/helpfulness/mixture"} <= set(columns)
    plain = world.run(arm_spec(conflict={"method": "pcgrad"})).outputs[0]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (output.path, plain.path)]
    assert any(not torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_an_attribute_of_the_mixture_s_name_is_refused_beside_it() -> None:
    spec = arm_spec(attributes=["mixture", "empathy"])
    assert parse_spec(spec)
    with pytest.raises(ValidationError, match="an attribute named mixture excludes"):
        parse_spec(spec | {"loss": {"mixture": 1.0}})
