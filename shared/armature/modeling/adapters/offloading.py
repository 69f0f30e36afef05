"""Offloading of models too large for their device: accelerate loads a layer's weights for each use.

A layer is placed on the device while there is room, else in host memory, else on disk, where it is read from the
checkpoint's safetensors without a copy. Embeddings, norms and the head stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from armature.modeling.adapters.arm import attach_adapter
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.layers import decoder_layers


def load_offloaded_model(
    folder: Path, device: str, dtype: torch.dtype, room: Mapping[str, int] | None = None
) -> PreTrainedModel:
    """Load a folder's model, frozen, with its decoder layers placed where there is room for them.

    Args:
        folder: A checked model folder.
        device: The device to run on.
        dtype: The dtype of the weights.
        room: Bytes that layers may take, by place (the device, and ``cpu``); the others stay on disk.

    Raises:
        InvalidCheckpoint: As in :func:`~armature.modeling.checkpoints.loading.load_model`, or the model has no stack of
            decoder layers.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    stack, layers = decoder_layers(skeleton)
    sizes = [sum(parameter.numel() * dtype.itemsize for parameter in layer.parameters()) for layer in layers]
    places = dict(_place_rest(skeleton, stack, device)) | {
        f"{stack}.{number}": place for number, place in enumerate(place_layers(sizes, device, room or {}))
    }
    model = load_model(folder, device, dtype, places)
    model.requires_grad_(False)
    return model


def count_on_disk(model: PreTrainedModel) -> int:
    """Count the layers of an offloaded model that are read from disk at each use."""
    places = getattr(model, "hf_device_map", {})  # absent if all modules are in one place
    return list(places.values()).count("disk")


def create_lora(model: PreTrainedModel, config: LoraConfig, device: str) -> PeftModel:
    """Attach a LoRA to an offloaded model, with the initial values it would have on a loaded one.

    PEFT creates an adapter on the device of the frozen weight, here ``meta``, so its values are drawn again in PEFT's
    order from torch's global generator. Layers are recomputed in the backward pass (:func:`recompute_layers`).
    """
    with torch.random.fork_rng():
        adapted = attach_adapter(model, config)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            for part in (module.lora_A["default"], module.lora_B["default"]):
                part.to_empty(device="cpu").reset_parameters()
            module.reset_lora_parameters("default", True)
            for part in (module.lora_A["default"], module.lora_B["default"]):
                part.to(device)
    recompute_layers(adapted)
    return adapted


def recompute_layers(model: nn.Module) -> None:
    """Recompute each decoder layer in the backward pass, so that the graph does not hold all weights.

    transformers checkpoints layers in training mode only; the flag is set on the layers alone, not on their dropouts.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.activation_checkpointing_enable({"use_reentrant": False})
            break
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def place_layers(sizes: Sequence[int], device: str, room: Mapping[str, int]) -> Iterator[str]:
    """Yield the place of each layer: the device, ``cpu`` or ``disk``.

    Args:
        sizes: Bytes of each layer, in order.
        device: The device to run on.
        room: Bytes that layers may take, by place.
    """
    free = dict(room)
    for size in sizes:
        place = next((place for place in (device, "cpu") if free.get(place, 0) >= size), "disk")
        if place != "disk":
            free[place] -= size
        yield place


def _place_rest(module: nn.Module, stack: str, device: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (module, device) for the largest modules outside of the layer stack."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if stack.startswith(f"{path}."):
            yield from _place_rest(child, stack, device, f"{path}.")
        elif stack != path:
            yield path, device
