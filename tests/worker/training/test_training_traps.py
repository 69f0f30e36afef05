"""Traps of training that only a whole run of the recipe shows; tests/architecture/test_traps.py lists the others."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.preferences import Guidance
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import adapter_layers
from armature.modeling.checkpoints.loading import load_model
from armature_cli.demo.phrases import VERBS
from armature_cli.demo.world import World as DemoWorld
from armature_worker.context.ports import RecipeResult
from tests.support.recipe_world import ATTRIBUTES, DATA, World, arm_spec, tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def tensors(result: RecipeResult) -> dict[str, torch.Tensor]:
    return load_file(result.outputs[0].path / "adapter_model.safetensors")


def metadata_of(result: RecipeResult) -> AdapterMetadata:
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, AdapterMetadata)
    return metadata


def same(first: RecipeResult, second: RecipeResult) -> bool:
    expected = tensors(second)
    return all(torch.equal(tensor, expected[name]) for name, tensor in tensors(first).items())


@pytest.mark.trap(5)
def test_tied_embeddings_are_no_target_and_keep_their_bits(world: World) -> None:
    result = world.run(arm_spec(adapter={"layers": "all"}))
    base = world.artifacts["base"].path
    arm = load_adapter(load_model(base), result.outputs[0].path)
    assert not any("embed" in name or "lm_head" in name for name in adapter_layers(arm))
    embedding = arm.get_base_model().get_input_embeddings().weight
    assert arm.get_base_model().get_output_embeddings().weight is embedding
    assert torch.equal(embedding, load_model(base).get_input_embeddings().weight)


@pytest.mark.trap(8)
def test_labels_follow_an_attributes_name_and_not_its_place(world: World) -> None:
    """Rows name their labels; the adapter's order is the spec's, whatever order the rows have."""
    turned = [row | {"labels": dict(reversed(row["labels"].items()))} for row in DATA["pairs"]]
    result = world.run(arm_spec())
    assert same(world.run(arm_spec(), {"pairs": turned}), result)
    swapped = world.run(arm_spec(attributes=ATTRIBUTES[::-1]))
    assert metadata_of(swapped).attributes == ATTRIBUTES[::-1]
    assert not same(swapped, result)


@pytest.mark.trap(11)
@pytest.mark.parametrize("form", ["reference", "sum", "mean"])
def test_the_adapter_records_its_loss_form(form: str, world: World) -> None:
    result = world.run(arm_spec(loss={"form": form}, training={"steps": 1}))
    assert metadata_of(result).loss_form == form
    arm = load_adapter(load_model(world.artifacts["base"].path), result.outputs[0].path)
    assert arm.active_peft_config.loss_form == form


@pytest.mark.trap(12)
def test_the_loss_beta_is_not_the_guidance_weight(world: World) -> None:
    soft, sharp = (world.run(arm_spec(loss={"beta": beta})) for beta in (0.5, 4.0))
    assert not same(soft, sharp)
    assert [set(metadata_of(result).beta.values()) for result in (soft, sharp)] == [{0.5}, {4.0}]
    assert "beta" not in Guidance.model_fields


@pytest.mark.trap(17)
def test_training_cuts_rows_at_the_limit_and_no_shorter(world: World) -> None:
    """A longer text is cut at its end; a shorter one is not affected by the limit."""
    longest = max(len(row["prompt"] + answer) for row in DATA["pairs"] for answer in row["responses"]) + 1
    training = arm_spec()["training"]
    whole, exact, cut = (
        world.run(arm_spec(training=training | {"max_length": limit})) for limit in (512, longest, longest - 4)
    )
    assert same(exact, whole)
    assert not same(cut, whole)


@pytest.mark.trap(18)
def test_dropped_rows_are_not_trained_on(world: World) -> None:
    training = arm_spec()["training"] | {"max_length": 40}
    long = DATA["pairs"][0] | {"prompt": "x" * 60}
    twice = DATA["pairs"][1] | {"responses": [" the same.", " the same."]}
    dirty = [long, *DATA["pairs"][:3], twice, *DATA["pairs"][3:], long]
    assert same(world.run(arm_spec(training=training), {"pairs": dirty}), world.run(arm_spec(training=training)))


@pytest.mark.trap(24)
def test_harm_in_tests_and_demo_is_a_nonsense_activity() -> None:
    demo = DemoWorld(seed=0)
    prompts = [row["prompt"] for role in ("harmful_pairs", "harmful_prompts") for row in DATA[role]]
    prompts += [prompt for prompt, _ in demo.harmful_pairs(50)] + demo.held_out_harmful_prompts(50)
    assert all(any(verb in prompt for verb in VERBS) for prompt in prompts)
