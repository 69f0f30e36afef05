"""arm.extend: the new attribute is learned, the old ARM is kept bit for bit, resuming changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.specs import parse_spec
from armature.errors import AdapterBaseMismatch, InvalidDataset, InvalidRequest
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.adapters.probe import check_probe
from armature.modeling.checkpoints.loading import load_model, load_safe_model
from armature_worker.context.ports import RecipeResult, WorkerStopping
from armature_worker.recipes.arm_extend import run
from tests.support.recipe_context import as_input
from tests.support.recipe_world import ATTRIBUTES, World, arm_spec, harm_spec, tiny_world

pytestmark = pytest.mark.slow

IDS = torch.tensor([[5, 9, 17, 42, 100, 7]])
WHO = ("ann", "bob", "cy")
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"{who} is sad.",
        "responses": [" oh.", " i hear you and i am here."][::order],
        "labels": {"brevity": 0 if order == 1 else 1, "empathy": 1 if order == 1 else 0, "helpfulness": None},
    }
    for who in WHO
    for order in (1, -1)
]
ROWS[0]["labels"]["helpfulness"] = 0
SPEC: dict[str, Any] = {
    "kind": "arm.extend",
    "base_model": "base",
    "harm_vector": "vector",
    "harm_scale": 1.0,
    "arm": "arm",
    "attribute": "brevity",
    "pairs": "d",
    "training": {"steps": 40, "batch_size": 6, "learning_rate": 5e-2, "checkpoint_every": 5},
    "seed": 3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = tiny_world(tmp_path_factory.mktemp("world"))
    world.artifacts["vector"] = as_input(world.run(harm_spec()).outputs[0])
    training = {"steps": 30, "batch_size": 6, "learning_rate": 2e-2}
    trained = world.run(arm_spec(harm_vector="vector", harm_scale=1.0, training=training))
    world.artifacts["arm"] = as_input(trained.outputs[0])
    return world


def extend(world: World, **changes: Any) -> RecipeResult:
    return world.run(SPEC | changes, {"pairs": ROWS})


@torch.no_grad()
def logits(world: World, folder: Path, p: list[float]) -> torch.Tensor:
    safe = load_safe_model(world.artifacts["base"].path, world.artifacts["vector"].path, 1.0)
    arm = load_adapter(safe, folder)
    with preferences(arm, torch.tensor([p])):
        return arm(IDS).logits[0]


@pytest.mark.parametrize("replay", [False, True])
def test_only_the_new_row_is_trained(replay: bool, world: World) -> None:
    result = extend(world, replay=replay)
    old, new = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (world.artifacts["arm"].path, result.outputs[0].path)
    )
    assert old.keys() == new.keys()
    for key, tensor in old.items():
        if key.endswith("W2"):
            assert torch.equal(new[key][:-1], tensor)
            assert new[key][-1].any()
        else:
            assert torch.equal(new[key], tensor)
    for p in ([1.0, 0.0], [0.3, 0.7]):
        before, after = logits(world, world.artifacts["arm"].path, p), logits(world, result.outputs[0].path, [*p, 0.0])
        torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    assert not torch.allclose(
        logits(world, result.outputs[0].path, [0, 0, 1]), logits(world, result.outputs[0].path, [1, 0, 0]), atol=1e-2
    )


def test_the_new_attribute_is_learned(world: World) -> None:
    spec = SPEC | {"preferences": {"vertices": 1.0, "centroid": 0.0}}
    context = world.context(spec, {"pairs": ROWS})
    run(parse_spec(spec), context)  # type: ignore[arg-type]
    losses = [metrics["loss/brevity"] for metrics in context.metrics if "loss/brevity" in metrics]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert not any("loss/empathy" in metrics for metrics in context.metrics)


def test_the_artifact_is_an_arm_with_one_attribute_more(world: World) -> None:
    output = extend(world).outputs[0]
    old, new = world.artifacts["arm"].manifest.metadata, output.metadata
    assert isinstance(old, AdapterMetadata)
    assert isinstance(new, AdapterMetadata)
    assert new.attributes == [*ATTRIBUTES, "brevity"]
    assert new.beta == {**old.beta, "brevity": 2.0}
    changed = {"attributes", "beta", "canary", "parameters", "validation", "trained_with"}
    assert new.model_dump(exclude=changed) == old.model_dump(exclude=changed)
    layers = len(json.loads((output.path / "adapter_config.json").read_bytes())["target_modules"])
    assert new.parameters == old.parameters + layers * old.rank_conditioned**2
    assert json.loads((output.path / "armature.json").read_bytes()) == new.model_dump(mode="json")
    assert {parent.role for parent in output.parents} == {"arm", "base_model", "harm_vector", "pairs"}
    safe = load_safe_model(world.artifacts["base"].path, world.artifacts["vector"].path, 1.0)
    check_probe(load_adapter(safe, output.path), new.canary)


def test_a_resumed_run_equals_an_uninterrupted_one(world: World, tmp_path: Path) -> None:
    def stop(phase: str, step: int) -> None:
        if (phase, step) == ("train", 7):
            raise WorkerStopping

    with pytest.raises(WorkerStopping):
        world.run(SPEC, {"pairs": ROWS}, checkpoints=tmp_path, on_progress=stop)
    resumed = world.run(SPEC, {"pairs": ROWS}, checkpoints=tmp_path).outputs[0].path
    whole = extend(world).outputs[0].path
    assert (resumed / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def test_what_does_not_fit_is_refused(world: World) -> None:
    with pytest.raises(InvalidRequest, match="already") as known:
        extend(world, attribute="empathy")
    assert known.value.param == "spec.attribute"
    with pytest.raises(AdapterBaseMismatch) as scale:
        extend(world, harm_scale=2.0)
    assert scale.value.param == "spec.arm"
    with pytest.raises(InvalidDataset, match="no pair has a label for wit"):
        extend(world, attribute="wit")
    unlabelled = [{**row, "labels": {"brevity": row["labels"]["brevity"]}} for row in ROWS]
    with pytest.raises(InvalidDataset, match="no pair has a label for empathy"):
        world.run(SPEC | {"replay": True}, {"pairs": unlabelled})
    with pytest.raises(ValueError, match="weight_decay"):
        extend(world, training={"weight_decay": 0.1})
    with pytest.raises(ValueError, match="processes"):
        extend(world, training={"processes": 2})


def test_the_backbone_may_be_trained_on_in_another_dtype(world: World) -> None:
    training = SPEC["training"] | {"steps": 2}
    stored, half = (extend(world, training=training | {"dtype": dtype}).outputs[0].path for dtype in (None, "bfloat16"))
    new = [load_file(folder / "adapter_model.safetensors") for folder in (stored, half)]
    assert any(not torch.equal(new[0][key], new[1][key]) for key in new[0])


def test_a_plain_base_s_arm_is_extended_too(world: World) -> None:
    world.artifacts["plain"] = as_input(world.run(arm_spec()).outputs[0])
    output = extend(world, arm="plain", harm_vector=None).outputs[0]
    arm = load_adapter(load_model(world.artifacts["base"].path), output.path)
    assert arm.active_peft_config.attributes == [*ATTRIBUTES, "brevity"]
