"""Layers on disk: the same logits and gradients, and no more than one layer's weights at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from armature.modeling.adapters import attach_adapter
from armature.modeling.decoder_layers import decoder_layers
from armature.modeling.loading import load_model
from armature.modeling.offloading import create_lora, load_offloaded_model
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "m", tiny_llama().to(torch.bfloat16))


def gradients(folder: Path, offload: bool) -> dict[str, torch.Tensor]:
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if offload:
            model = create_lora(load_offloaded_model(folder, "cpu", torch.float32), config, "cpu")
        else:
            model = attach_adapter(load_model(folder, "cpu", torch.float32), config)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data += 0.1
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def test_only_the_running_layer_has_weights(folder: Path) -> None:
    model = load_offloaded_model(folder, "cpu", torch.float32)
    _, layers = decoder_layers(model)
    held: list[list[int]] = []

    def note(*_: object) -> None:
        held.append([n for n, layer in enumerate(layers) if any(p.device.type != "meta" for p in layer.parameters())])

    for layer in layers:
        layer.mlp.act_fn.register_forward_hook(note)
    logits = model(IDS).logits
    assert torch.equal(logits, load_model(folder, "cpu", torch.float32)(IDS).logits)
    assert len(held) == len(layers)
    assert all(set(numbers) <= {running} for running, numbers in enumerate(held))
    assert {p.device.type for layer in layers for p in layer.parameters()} == {"meta"}


def test_gradients_are_those_of_the_loaded_model(folder: Path) -> None:
    offloaded, plain = gradients(folder, True), gradients(folder, False)
    assert offloaded.keys() == plain.keys()
    assert len(plain) == 8
    for name, gradient in plain.items():
        assert torch.equal(offloaded[name], gradient), name
        assert gradient.any()
