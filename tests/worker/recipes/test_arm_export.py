"""arm.export: the same logits in stock PEFT at any preference; names, digests and bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel

from armature.contracts.artifacts import LoraMetadata
from armature.contracts.specs.arm import AdapterShape
from armature.errors import InvalidRequest
from armature.modeling.adapters.arm import create_arm, load_adapter, save_adapter
from armature.modeling.adapters.files import read_adapter
from armature.modeling.adapters.lora import write_lora
from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from armature.modeling.checkpoints.loading import load_model
from tests.support.recipe_context import as_input
from tests.support.recipe_world import ATTRIBUTES, World, arm_spec, harm_spec, tiny_world
from tests.support.stock_peft import stock_logits
from tests.support.tiny_models import tiny_family

IDS = [5, 9, 17, 42, 100]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, a vector, the safe checkpoint, and an ARM trained on it."""
    world = tiny_world(tmp_path_factory.mktemp("world"))
    vector, safe = world.run(harm_spec(scale=2.0)).outputs
    world.artifacts |= {"vector": as_input(vector), "safe": as_input(safe)}
    trained = world.run(arm_spec(harm_vector="vector", harm_scale=2.0, adapter={"layers": "all"}))
    world.artifacts["arm"] = as_input(trained.outputs[0])
    return world


def export_spec(**changes: object) -> dict[str, object]:
    return {"kind": "arm.export", "arm": "arm"} | changes


@torch.no_grad()
def arm_logits(arm: PeftModel, preference: list[float]) -> torch.Tensor:
    with preferences(arm, torch.tensor([preference])):
        return arm(torch.tensor([IDS])).logits[0]


@pytest.mark.process
def test_stock_peft_gives_the_same_logits_without_our_code(world: World, tmp_path: Path) -> None:
    lora = world.run(export_spec(preference={"helpfulness": 3.0, "empathy": 1.0})).outputs[0]
    safe = world.artifacts["safe"].path
    arm = load_adapter(load_model(safe), world.artifacts["arm"].path)
    torch.testing.assert_close(
        stock_logits(safe, lora.path, IDS, tmp_path), arm_logits(arm, [0.25, 0.75]), atol=1e-5, rtol=0
    )
    assert not torch.allclose(arm_logits(arm, [0.25, 0.75]), arm_logits(arm, [0.75, 0.25]), atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_every_family_and_rank_at_every_preference(family: str, shared: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = AdapterShape(rank_shared=shared, rank_conditioned=2, alpha=3.0, layers="all")
    arm = create_arm(tiny_family(family), ["a", "b", "c"], shape, "sum").eval()
    for layer in adapter_layers(arm).values():
        torch.nn.init.normal_(layer.pblora_B["default"], std=0.3)
    save_adapter(arm, tmp_path / "arm")
    adapter = read_adapter(tmp_path / "arm")
    for number, preference in enumerate(([1.0, 0.0, 0.0], [0.2, 0.5, 0.3])):
        folder = tmp_path / f"lora{number}"
        count = write_lora(adapter, preference, "base", folder)
        plain = PeftModel.from_pretrained(tiny_family(family), folder).eval()
        with torch.no_grad():
            logits = plain(torch.tensor([IDS])).logits[0]
        torch.testing.assert_close(logits, arm_logits(arm, preference), atol=1e-5, rtol=1e-5)
        assert count == sum(p.numel() for name, p in plain.named_parameters() if "lora_" in name)
        config = plain.active_peft_config
        assert (config.r, config.lora_alpha) == (shared + 2, shared + 2)


def test_what_the_artifact_says_of_itself(world: World) -> None:
    output = world.run(export_spec(preference={"empathy": 2.0}, base_name="team/safe-7b")).outputs[0]
    metadata = output.metadata
    assert isinstance(metadata, LoraMetadata)
    assert metadata.preference == {"empathy": 1.0, "helpfulness": 0.0}
    assert metadata.backbone == world.artifacts["arm"].manifest.metadata.backbone  # type: ignore[union-attr]
    assert {parent.role: parent.digest for parent in output.parents} == {"arm": world.artifacts["arm"].digest}
    names = {"adapter_config.json", "adapter_model.safetensors", "armature.json", "README.md"}
    assert {path.name for path in output.path.iterdir()} == names
    assert json.loads((output.path / "armature.json").read_bytes()) == metadata.model_dump(mode="json")
    assert json.loads((output.path / "adapter_config.json").read_bytes())["base_model_name_or_path"] == "team/safe-7b"
    _, fields, text = (output.path / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(fields)
    assert (card["library_name"], card["base_model"]) == ("peft", "team/safe-7b")
    assert "base_model:adapter:team/safe-7b" in card["tags"]
    assert metadata.backbone.model_digest in text


def test_the_same_export_has_the_same_bytes(world: World) -> None:
    first, second = (world.run(export_spec()).outputs[0] for _ in range(2))
    for path in first.path.iterdir():
        assert path.read_bytes() == (second.path / path.name).read_bytes()


def test_an_export_names_its_backbone_by_digest(world: World) -> None:
    output = world.run(export_spec()).outputs[0]
    assert isinstance(output.metadata, LoraMetadata)
    assert output.metadata.preference == dict.fromkeys(ATTRIBUTES, 0.5)
    name = json.loads((output.path / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    backbone = output.metadata.backbone
    assert name == f"sha256:{backbone.model_digest} - 2 * sha256:{backbone.harm_vector_digest}"


def test_a_preference_that_the_arm_does_not_know_is_refused(world: World) -> None:
    with pytest.raises(InvalidRequest, match="wit") as caught:
        world.run(export_spec(preference={"wit": 1.0}))
    assert caught.value.param == "preference.wit"
