"""Random-weight Llamas for benchmarks, and random adapters on them."""

from __future__ import annotations

import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from armature.contracts.preferences import ATTRIBUTES
from armature.contracts.specs.arm import AdapterShape
from armature.inference.shared_weights import SharedWeights
from armature.modeling.adapters.arm import create_arm
from armature.modeling.adapters.peft_pblora import adapter_layers
from benchmarks.plan import Adapted, DeviceChoice, DtypeChoice, Size, Targets
from benchmarks.report import has_fast_bfloat16

_SHAPES: dict[Size, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 4, "kv_heads": 2, "vocab_size": 512},
    "35m": {"hidden_size": 384, "intermediate_size": 1024, "layers": 8, "heads": 6, "kv_heads": 2},
    "125m": {"hidden_size": 768, "intermediate_size": 2048, "layers": 12, "heads": 12, "kv_heads": 4},
    "500m": {"hidden_size": 1536, "intermediate_size": 4096, "layers": 16, "heads": 24, "kv_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "layers": 32, "heads": 32, "kv_heads": 8},
}


def choose_device(choice: DeviceChoice) -> str:
    """Resolve a choice of device; ``auto`` is a GPU if there is one.

    Raises:
        typer.BadParameter: ``cuda`` is chosen and there is no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if choice == "cuda" and not has_gpu:
        raise typer.BadParameter("this machine, or its build of torch, has no CUDA device", param_hint="--device")
    return ("cuda" if has_gpu else "cpu") if choice == "auto" else choice


def choose_dtype(choice: DtypeChoice, device: str) -> str:
    """Resolve a choice of dtype; ``auto`` is bfloat16 if the device multiplies it in hardware."""
    if choice != "auto":
        return choice
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def random_model(size: Size, device: str, dtype: torch.dtype, seed: int = 0) -> LlamaForCausalLM:
    """Make a model with random frozen weights, the same for the same seed."""
    shape = dict(_SHAPES[size])
    config = LlamaConfig(
        num_hidden_layers=shape.pop("layers"),
        num_attention_heads=shape.pop("heads"),
        num_key_value_heads=shape.pop("kv_heads"),
        dtype=dtype,
        **shape,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model: LlamaForCausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def adapt(base: LlamaForCausalLM, layers: Adapted, targets: Targets, spread: float = 0.02) -> PeftModel:
    """Put an ARM of the five attributes on the model's own tensors, all of it random, B too."""
    shape = AdapterShape.model_validate({"layers": layers, "targets": targets})
    model = create_arm(SharedWeights(base, lean=False).modules(), ATTRIBUTES, shape, "reference").eval()
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            for tensor in layer.weights("default"):
                tensor.normal_(0, spread)
    return model
