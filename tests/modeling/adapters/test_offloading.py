"""Layers on disk: the same logits and gradients, and no more than one of them in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from armature.modeling.adapters.arm import attach_adapter
from armature.modeling.adapters.offloading import count_on_disk, create_lora, load_offloaded_model, place_layers
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.layers import decoder_layers
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "m", tiny_llama().to(torch.bfloat16))


LAYER = 4 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32)
"""Bytes of a layer in float32."""


def gradients(folder: Path, room: int | None) -> dict[str, torch.Tensor]:
    """Of a LoRA on the model, offloaded with that much room for layers, or loaded whole."""
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if room is not None:
            offloaded = load_offloaded_model(folder, "cpu", torch.float32, {"cpu": room})
            assert count_on_disk(offloaded) == 2 - room // LAYER
            model = create_lora(offloaded, config, "cpu")
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


@pytest.mark.parametrize("room", [0, LAYER - 1, LAYER, 2 * LAYER])
def test_gradients_are_those_of_the_loaded_model(room: int, folder: Path) -> None:
    offloaded, plain = gradients(folder, room), gradients(folder, None)
    assert offloaded.keys() == plain.keys()
    assert len(plain) == 8
    for name, gradient in plain.items():
        assert torch.equal(offloaded[name], gradient), name
        assert gradient.any()


def test_a_layer_is_on_the_device_else_on_the_host_else_on_disk() -> None:
    places = list(place_layers([3, 3, 3, 1, 3], "cuda:0", {"cuda:0": 4, "cpu": 5}))
    assert places == ["cuda:0", "cpu", "disk", "cuda:0", "disk"]
    assert list(place_layers([3, 3], "cpu", {})) == ["disk", "disk"]
