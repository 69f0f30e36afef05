"""Models too large for their device: accelerate fetches a layer's weights when it runs and drops them after it.

A layer stays on the device where there is room, else in the host's memory, else on disk, whence it is read straight
from the checkpoint's safetensors; nothing is copied. Embeddings, norms and the head are held.
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
    """The folder's model with its decoder layers where there is room for them, to run on ``device``. It is frozen.

    Args:
        folder: A checked model folder.
        device: Where it runs.
        dtype: Of its weights.
        room: Bytes that layers may take, by place (the device, and ``cpu``); the others stay on disk.

    Raises:
        InvalidCheckpoint: As :func:`~armature.modeling.checkpoints.loading.load_model`, or no stack of decoder layers.
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
    """How many of an offloaded model's layers are read from disk whenever they run."""
    places = getattr(model, "hf_device_map", {})  # none where everything is in one place
    return list(places.values()).count("disk")


def create_lora(model: PreTrainedModel, config: LoraConfig, device: str) -> PeftModel:
    """A LoRA on an offloaded model, on ``device``, with the initial values that a loaded model's would have.

    PEFT puts an adapter where the frozen weight is, which is nowhere here, so its values are drawn again in its order
    from torch's global generator. Layers are recomputed in the backward pass (:func:`recompute_layers`).
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
    """Recompute each decoder layer in the backward pass: a graph would hold the weights of all of them till then.

    Layers recompute in training mode; the flag is theirs alone, so that no dropout comes with it.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.activation_checkpointing_enable({"use_reentrant": False})
            break
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def place_layers(sizes: Sequence[int], device: str, room: Mapping[str, int]) -> Iterator[str]:
    """Where each layer goes: the device, ``cpu`` or ``disk``.

    Args:
        sizes: Bytes of each layer, in order.
        device: Where the model runs.
        room: Bytes that layers may take, by place.
    """
    left = dict(room)
    for size in sizes:
        place = next((place for place in (device, "cpu") if left.get(place, 0) >= size), "disk")
        if place != "disk":
            left[place] -= size
        yield place


def _place_rest(module: nn.Module, stack: str, device: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each module beside the path to the stack on the device."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if stack.startswith(f"{path}."):
            yield from _place_rest(child, stack, device, f"{path}.")
        elif stack != path:
            yield path, device
