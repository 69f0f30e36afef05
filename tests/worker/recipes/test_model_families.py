"""Every family of docs/families.md, from import to export, on tiny random weights in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from armature.contracts.artifacts import AdapterMetadata, TaskVectorMetadata
from armature.errors import InvalidRequest
from armature.inference.lean.architecture import refusal
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel, vocabulary_size
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.checkpoints.loading import load_model, load_safe_model, load_tokenizer
from armature.modeling.checkpoints.task_vector import read_task_vector
from armature.modeling.layers import decoder_weights
from armature_worker.context.ports import Output
from tests.support.generate import generate_guided
from tests.support.recipe_context import as_input
from tests.support.recipe_world import World, arm_spec, harm_spec
from tests.support.tiny_models import save_tiny_checkpoint, tiny_family

MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
ROOT = Path(__file__).parents[3]
IDS = [5, 9, 17, 42, 100]
TRAINING = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Family:
    """A row of the table: the config's settings, the share of weights edited, and what lean refuses it for."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    lean_refuses: str | None = None
    mixture: bool = False


FAMILIES = {
    "Llama": Family("llama"),
    "Mistral": Family("mistral", {"sliding_window": None, "head_dim": 8}),
    "Qwen2": Family("qwen2"),
    "Qwen3": Family("qwen3", {"head_dim": 8}),
    "Qwen3-MoE": Family("qwen3_moe", MOE, 0.986, "model_type", mixture=True),
    "Mixtral": Family("mixtral", MOE, 0.994, "model_type", mixture=True),
    "Gemma 2": Family("gemma2", {"head_dim": 8}, lean_refuses="model_type"),
    "Gemma 3": Family("gemma3_text", {"head_dim": 8}, lean_refuses="model_type"),
    "Phi-3": Family("phi3", lean_refuses="model_type"),
    "GPT-NeoX": Family("gpt_neox", lean_refuses="model_type"),
    "GPT-OSS": Family("gpt_oss", MOE, 0.971, "model_type", mixture=True),
    "OLMo 2": Family("olmo2", lean_refuses="model_type"),
    "Granite": Family("granite", lean_refuses="model_type"),
    "Falcon": Family("falcon", {"alibi": False}, lean_refuses="model_type"),
    "SmolLM3": Family("smollm3", lean_refuses="model_type"),
}


def test_the_page_has_these_rows() -> None:
    """docs/families.md: family, model_type, share of weights edited, what adapters reach, back ends, one row each."""
    rows = [
        f"| {name} | `{family.model_type}` | {family.share:.1%} | {'attention' if family.mixture else 'all'} | "
        f"{'`hf`' if family.lean_refuses else '`lean`, `hf`'} |"
        for name, family in FAMILIES.items()
    ]
    page = (ROOT / "docs" / "families.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| ") and "`" in line and "%" in line] == rows


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def world(family: Family, tmp_path: Path) -> World:
    settings = {"num_hidden_layers": 2, **family.settings}
    model = tiny_family(family.model_type, **settings)
    world = World(tmp_path)
    world.import_model(save_tiny_checkpoint(tmp_path / "source", model.to(torch.bfloat16)))
    return world


def load_safe(world: World) -> PeftModel:
    """Load the base less twice the vector, with the ARM, in float32."""
    folders = {name: artifact.path for name, artifact in world.artifacts.items()}
    safe = load_safe_model(folders["base"], folders["vector"], 2.0, dtype=torch.float32)
    return load_adapter(safe, folders["arm"])


def guided(world: World, arm: PeftModel, *, lean: bool) -> GuidedModel:
    """The safe model with the ARM, on one of the back ends."""
    tokenizer = load_tokenizer(world.artifacts["base"].path)
    size = vocabulary_size(tokenizer, arm)
    model = LeanModel(arm) if lean else arm
    return GuidedModel(model, frozenset(), size, ("empathy", "helpfulness"), "reference")


def answers(model: GuidedModel) -> list[list[int]]:
    guide = Guide((0.5, 0.5), weight=1.0)
    requests = [GuidedRequest(tuple(prompt), 6, temperature=0.0, guide=guide) for prompt in (IDS, IDS[1:4])]
    return generate_guided(model, requests)


@pytest.mark.slow
def test_the_whole_way(family: Family, world: World) -> None:
    """Import, harm vector, safe checkpoint, ARM, decoding on the back ends that take the family, merged export."""
    vector, safe = world.run(harm_spec(training=TRAINING, scale=2.0)).outputs
    world.artifacts |= {"vector": as_input(vector)}
    check_vector(family, world, vector, safe.path)
    spec = arm_spec(harm_vector="vector", harm_scale=2.0, training=TRAINING | {"dtype": "float32"})
    if family.mixture:
        with pytest.raises(InvalidRequest, match=r"experts in one parameter.* set spec.adapter.targets to attention"):
            world.run(spec)
        spec["adapter"] = {"targets": "attention"}
    (arm,) = world.run(spec).outputs
    world.artifacts["arm"] = as_input(arm)
    assert isinstance(arm.metadata, AdapterMetadata)
    assert arm.metadata.selected_share is not None
    assert arm.metadata.selected_share < 0.5 if family.mixture else arm.metadata.selected_share == 0.5
    adapted = load_safe(world)
    decoded = answers(guided(world, adapted, lean=False))
    assert [len(ids) for ids in decoded] == [6, 6]
    assert refusal(adapted.get_base_model()) == family.lean_refuses
    if family.lean_refuses is None:
        assert answers(guided(world, load_safe(world), lean=True)) == decoded
    check_export(world, adapted)


@torch.no_grad()
def check_vector(family: Family, world: World, vector: Output, safe: Path) -> None:
    """The vector covers the share of weights that the table says; stock transformers loads base - 2 v."""
    base = load_model(world.artifacts["base"].path, dtype=torch.float32)
    assert isinstance(vector.metadata, TaskVectorMetadata)
    assert vector.metadata.selected_share == pytest.approx(family.share, abs=0.005)
    assert vector.metadata.total == sum(weight.numel() for weight in decoder_weights(base).values())
    stored = read_task_vector(vector.path)
    exported = AutoModelForCausalLM.from_pretrained(safe, dtype=torch.float32)
    for name, parameter in exported.named_parameters():
        expected = base.get_parameter(name).clone()
        if name in stored.shapes:
            sparse = stored.tensor(name)
            expected.view(-1)[sparse.indices] -= 2.0 * sparse.values
        assert torch.equal(parameter, expected.to(torch.bfloat16).float()), name


@torch.no_grad()
def check_export(world: World, adapted: PeftModel) -> None:
    """The merged checkpoint, in stock transformers, is the safe model with the ARM at that preference."""
    spec = {"kind": "checkpoint.export", "base_model": "base", "harm_vector": "vector", "harm_scale": 2.0, "arm": "arm"}
    (merged,) = world.run(spec | {"preference": {"empathy": 3.0, "helpfulness": 1.0}}).outputs
    with preferences(adapted, torch.tensor([[0.75, 0.25]])):
        expected = adapted(torch.tensor([IDS])).logits
    exported = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)(torch.tensor([IDS])).logits
    torch.testing.assert_close(exported, expected, atol=0.02, rtol=0)  # weights were rounded to bfloat16 once
    plain = load_safe_model(world.artifacts["base"].path, None, 0.0, dtype=torch.float32)(torch.tensor([IDS])).logits
    assert (exported - plain).abs().max() > 0
