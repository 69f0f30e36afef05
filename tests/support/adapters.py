"""Random PBLoRA adapters that do something, for tests of serving and decoding."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from armature.modeling.peft_pblora import PBLoRAConfig, adapter_layers


def add_random_adapter(model: PreTrainedModel, attributes: list[str], seed: int = 0, size: float = 0.3) -> PeftModel:
    """``model`` with an adapter on all its linears whose tensors are drawn from a normal distribution."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, PBLoRAConfig(attributes=attributes, target_modules=targets)).eval()
    generator = torch.Generator().manual_seed(seed)
    for layer in adapter_layers(adapted).values():
        for tensor in layer.weights("default"):
            tensor.data.normal_(0, size, generator=generator)
    return adapted
