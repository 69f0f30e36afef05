"""Sharded loading: in a group of one it gives the loaded model; architectures it can not read are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from armature.algorithms.task_vectors import HeldVector, SparseTensor
from armature.contracts.specs.arm import AdapterShape
from armature.errors import AdapterBaseMismatch, InvalidRequest
from armature.modeling.adapters.arm import create_arm
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.checkpoints.loading import load_safe_model
from armature.modeling.checkpoints.sharded_loading import load_sharded_model, shard_rest
from armature.modeling.checkpoints.task_vector import VectorOrigin, write_task_vector
from tests.support.tiny_models import save_tiny_checkpoint, tiny_family, tiny_llama

IDS = torch.arange(12).reshape(2, 6) + 5
MODELS = {
    "tied": lambda: tiny_llama(seed=1),
    "untied": lambda: tiny_llama(seed=1, tied=False),
    "bfloat16": lambda: tiny_llama(seed=1).to(torch.bfloat16),
    "qwen2": lambda: tiny_family("qwen2"),
    "gpt2": lambda: tiny_family("gpt2"),
}


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def write_vector(folder: Path, name: str, shape: tuple[int, ...]) -> Path:
    """A vector that changes two entries of one tensor."""
    vector = HeldVector({name: SparseTensor(torch.tensor([1, 5]), torch.tensor([0.5, -0.25]), shape)}, 1.0)
    write_task_vector(vector, VectorOrigin(base_model_digest="0" * 64, rule="global", density=0.1), folder)
    return folder


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_the_shards_make_up_the_model(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    folder = save_tiny_checkpoint(tmp_path / "model", model)
    name, weight = next((name, weight) for name, weight in model.named_parameters() if weight.dim() == 2)
    vector = write_vector(tmp_path / "vector", name, tuple(weight.shape))
    whole = load_safe_model(folder, vector, 2.0)
    sharded = load_sharded_model(folder, vector, 2.0, device="cpu")
    parameters = dict(whole.named_parameters())
    for key, parameter in sharded.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(local, parameters[key]), key
    logits = []
    for backbone in (whole, sharded):
        torch.manual_seed(0)
        arm = create_arm(backbone, ["a", "b"], AdapterShape(), "reference")
        if backbone is sharded:
            shard_rest(arm, "cpu")
            assert not any(isinstance(parameter, DTensor) for parameter in arm.parameters() if parameter.requires_grad)
        with torch.no_grad(), preferences(arm, torch.tensor([[0.2, 0.8], [0.6, 0.4]])):
            logits.append(arm(input_ids=IDS).logits)
    assert torch.equal(*logits)


def test_a_vector_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    vector = write_vector(tmp_path / "vector", "model.layers.7.mlp.up_proj.weight", (48, 32))
    with pytest.raises(AdapterBaseMismatch):
        load_sharded_model(folder, vector, 1.0, device="cpu")


def test_an_architecture_that_merges_its_tensors_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model", tiny_family("mixtral", num_local_experts=2))
    with pytest.raises(InvalidRequest, match="can not be sharded"):
        load_sharded_model(folder, None, 0.0, device="cpu")
