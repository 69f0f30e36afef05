"""checkpoint.export: another scale, a merged preference, or both; equal to the served model in stock transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armature.algorithms.task_vectors import subtract_task_vector
from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs import parse_spec
from armature.errors import AdapterBaseMismatch
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.checkpoints.loading import load_model, load_safe_model
from armature.modeling.checkpoints.task_vector import read_task_vector
from tests.support.recipe_context import as_input
from tests.support.recipe_world import World, arm_spec, harm_spec, tiny_world
from tests.support.stock_peft import stock_logits
from tests.support.tiny_models import save_tiny_checkpoint, tiny_family, tiny_llama

IDS = [5, 9, 17, 42, 100]
NAN = float("nan")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, a vector, the safe checkpoint at scale 2, and an ARM trained on it; the same on GPT-2."""
    world = tiny_world(tmp_path_factory.mktemp("world"))
    world.import_model(save_tiny_checkpoint(world.folder / "gpt2", tiny_family("gpt2")), "gpt2")
    for base, prefix in (("base", ""), ("gpt2", "gpt2_")):
        vector, safe = world.run(harm_spec(base_model=base, scale=2.0)).outputs
        world.artifacts |= {f"{prefix}vector": as_input(vector), f"{prefix}safe": as_input(safe)}
        trained = world.run(arm_spec(base_model=base, harm_vector=f"{prefix}vector", harm_scale=2.0))
        world.artifacts[f"{prefix}arm"] = as_input(trained.outputs[0])
    return world


def export_spec(**changes: object) -> dict[str, object]:
    return {"kind": "checkpoint.export", "base_model": "base", "harm_vector": "vector", "harm_scale": 2.0} | changes


def test_the_scale_of_the_build_gives_the_same_checkpoint(world: World) -> None:
    output = world.run(export_spec()).outputs[0]
    assert output.metadata == world.artifacts["safe"].manifest.metadata
    files = {path.name for path in world.artifacts["safe"].path.iterdir()}
    assert {path.name for path in output.path.iterdir()} == files | {"README.md"}
    assert {parent.role for parent in output.parents} == {"base_model", "harm_vector"}
    assert world.artifacts["vector"].digest in (output.path / "README.md").read_text()


def test_an_export_is_a_base_to_go_on_from(world: World) -> None:
    world.artifacts["edited"] = as_input(world.run(export_spec(harm_scale=0.5)).outputs[0])
    vector, safe = world.run(harm_spec(base_model="edited")).outputs
    assert vector.metadata.base_model_digest == world.artifacts["edited"].manifest.metadata.model_digest  # type: ignore[union-attr]
    assert load_model(safe.path)
    with pytest.raises(AdapterBaseMismatch):
        world.run(export_spec(base_model="edited"))


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_any_other_scale_needs_no_training(scale: float, world: World) -> None:
    output = world.run(export_spec(harm_scale=scale)).outputs[0]
    safe = load_safe_model(world.artifacts["base"].path, world.artifacts["vector"].path, scale)
    for name, tensor in load_model(output.path).state_dict().items():
        assert torch.equal(tensor, safe.state_dict()[name])
    assert isinstance(output.metadata, CheckpointMetadata)
    base = world.artifacts["base"].manifest.metadata
    assert isinstance(base, CheckpointMetadata)
    assert (output.metadata.model_digest == base.model_digest) == (scale == 0)


@pytest.mark.process
def test_a_merged_preference_needs_neither_our_code_nor_peft(world: World, tmp_path: Path) -> None:
    output = world.run(export_spec(arm="arm", preference={"empathy": 3.0, "helpfulness": 1.0})).outputs[0]
    arm = load_adapter(load_model(world.artifacts["safe"].path), world.artifacts["arm"].path)
    with torch.no_grad(), preferences(arm, torch.tensor([[0.75, 0.25]])):
        expected = arm(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(stock_logits(output.path, None, IDS, tmp_path), expected, atol=1e-5, rtol=0)
    safe = load_model(world.artifacts["safe"].path)(torch.tensor([IDS])).logits[0]
    assert (expected - safe).abs().max() > 1e-3


@torch.no_grad()
def test_weights_that_a_family_stores_transposed(world: World) -> None:
    spec = export_spec(base_model="gpt2", harm_vector="gpt2_vector", arm="gpt2_arm", preference={"helpfulness": 1.0})
    output = world.run(spec).outputs[0]
    arm = load_adapter(load_model(world.artifacts["gpt2_safe"].path), world.artifacts["gpt2_arm"].path)
    with preferences(arm, torch.tensor([[0.0, 1.0]])):
        expected = arm(torch.tensor([IDS])).logits
    torch.testing.assert_close(load_model(output.path)(torch.tensor([IDS])).logits, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_weights_are_rounded_once(world: World) -> None:
    base = world.import_model(save_tiny_checkpoint(world.folder / "half", tiny_llama().bfloat16()), "half")
    vector, _ = world.run(harm_spec(base_model="half", scale=2.0)).outputs
    world.artifacts["half_vector"] = as_input(vector)
    trained = world.run(arm_spec(base_model="half", harm_vector="half_vector", harm_scale=2.0))
    world.artifacts["half_arm"] = as_input(trained.outputs[0])
    spec = export_spec(base_model="half", harm_vector="half_vector", arm="half_arm", preference={"empathy": 1.0})
    got = load_model(world.run(spec).outputs[0].path).state_dict()
    model = load_model(base.path, dtype=torch.float32)
    subtract_task_vector(dict(model.named_parameters()), read_task_vector(vector.path), 2.0)
    exact = model.state_dict()
    stored = load_file(trained.outputs[0].path / "adapter_model.safetensors")
    checked = 0
    for name, weight in exact.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.pblora_"
        if key + "A" in stored:
            a, b, w1, w2 = (stored[key + part] for part in ("A", "B", "W1", "W2"))
            core = torch.block_diag(w1, w2[0].view(4, 4))
            weight = weight + 2.0 * b @ core @ a
            checked += 1
        torch.testing.assert_close(got[name].float(), weight.bfloat16().float(), atol=0, rtol=2**-7)
        assert (got[name] == weight.bfloat16()).float().mean() > 0.99
    assert checked == 7


def test_an_arm_of_another_scale_is_refused(world: World) -> None:
    with pytest.raises(AdapterBaseMismatch) as caught:
        world.run(export_spec(arm="arm", harm_scale=1.0))
    assert caught.value.param == "spec.arm"
    with pytest.raises(AdapterBaseMismatch) as caught:
        world.run(export_spec(harm_vector="gpt2_vector"))
    assert caught.value.param == "spec.harm_vector"


@pytest.mark.parametrize(
    "change", [{"harm_vector": None}, {"preference": {"empathy": 1.0}}, {"harm_scale": -1.0}, {"harm_scale": NAN}]
)
def test_specs_that_mean_nothing_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.export"):
        parse_spec(export_spec(**change))
