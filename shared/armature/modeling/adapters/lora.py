"""An ARM at one fixed preference as a plain LoRA, for servers and libraries without preferences.

The LoRA's ``B A`` equals the adapter's delta: ``A = A``, ``B = s B core(p)``, rank r1 + r2, and lora_alpha = rank, so
that its own scale is 1 (:func:`armature.algorithms.conditioned_lora.export_lora`). An adapter with a shift needs a bias
on B too, which stock PEFT calls ``lora_bias`` and other servers may refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from armature.algorithms.conditioned_lora import export_lora
from armature.algorithms.low_rank_deltas import LowRankDelta
from armature.contracts.base import canonical_json
from armature.errors import AdapterBaseMismatch, InvalidAdapter
from armature.modeling.adapters.files import CONFIG, WEIGHTS, StoredAdapter, tensor_key
from armature.modeling.layers import decoder_linears, linear_size

_NAMES = "lora_A.weight", "lora_B.weight", "lora_B.bias"


def fix_preference(
    adapter: StoredAdapter, preference: Sequence[float]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Compute ``lora_A`` (R, in), ``lora_B`` (out, R) and its bias (out,), if the kind has one, by layer.

    ``preference`` is in the order of the adapter's attributes.
    """
    p, shape = torch.tensor(preference), adapter.config.shape
    return {module: export_lora(weights, p, shape) for module, weights in adapter.layers.items()}


def merge_delta(adapter: StoredAdapter, preference: Sequence[float], model: PreTrainedModel) -> LowRankDelta:
    """Compute the delta that merging adds to the weights of ``model``, which may be on the meta device.

    Raises:
        AdapterBaseMismatch: The model lacks a layer, or has it in another size.
        InvalidAdapter: The adapter shifts features, which weights alone can not hold.
    """
    if adapter.config.shape.shifts:
        message = f"a {adapter.config.kind} adapter needs biases that weights lack: arm.export writes a LoRA with them"
        raise InvalidAdapter(message, param="spec.arm")
    linears, factors = decoder_linears(model), {}
    for module, (a, b, _) in fix_preference(adapter, preference).items():
        target = linears.get(module)
        if target is None or linear_size(target) != (a.shape[1], b.shape[0]):
            raise AdapterBaseMismatch(f"the model has no layer like the adapter's {module}", param="spec.arm")
        factors[f"{module}.weight"] = (a.T, b.T) if isinstance(target, Conv1D) else (b, a)
    return LowRankDelta(factors)


def write_lora(adapter: StoredAdapter, preference: Sequence[float], base_name: str, folder: Path) -> int:
    """Write the LoRA into a new folder, in the fields and keys that every version of stock PEFT knows.

    ``lora_bias``, for an adapter with a shift, is known since PEFT 0.14.

    Args:
        adapter: The ARM.
        preference: Weights in the order of its attributes.
        base_name: The config's name of the model that the LoRA is for.
        folder: The new folder.

    Returns:
        The number of parameters.
    """
    folder.mkdir()
    state = {
        tensor_key(module, name): tensor.contiguous()
        for module, tensors in sorted(fix_preference(adapter, preference).items())
        for name, tensor in zip(_NAMES, tensors, strict=True)
        if tensor is not None
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    rank, shifts = adapter.config.shape.rank, adapter.config.shape.shifts
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        **({"lora_bias": True} if shifts else {}),
    }
    (folder / CONFIG).write_bytes(canonical_json(config))
    return sum(tensor.numel() for tensor in state.values())
