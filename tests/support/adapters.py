"""Random PBLoRA adapters that do something, for tests of serving and decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.contracts.specs.arm import AdapterShape
from armature.modeling.adapters.arm import create_arm
from armature.modeling.adapters.peft_pblora import adapter_layers


def add_random_adapter(
    model: PreTrainedModel,
    attributes: Sequence[str],
    seed: int = 0,
    size: float = 0.3,
    shape: AdapterShape = AdapterShape(layers="all"),
) -> PeftModel:
    """``model`` with an adapter (by default on all its linears) whose tensors are drawn from a normal distribution."""
    adapted = create_arm(model, attributes, shape, "reference").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapter_layers(adapted).values():
        for tensor in layer.weights("default"):
            tensor.copy_(torch.empty_like(tensor, device="cpu").normal_(0, size, generator=generator))
    return adapted
