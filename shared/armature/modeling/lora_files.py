"""An ARM at one fixed preference as a plain LoRA: what servers and libraries read that know nothing of preferences.

The LoRA's ``B A`` is the adapter's delta exactly: ``A = A``, ``B = s B core(p)``, rank r1 + r2, and lora_alpha = rank,
so that its own scale is 1 (:func:`armature.algorithms.pblora.export_lora`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from armature.algorithms.pblora import export_lora
from armature.contracts.base import canonical_json
from armature.modeling.adapter_files import CONFIG, WEIGHTS, StoredAdapter, tensor_key


def fix_preference(adapter: StoredAdapter, preference: Sequence[float]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """``lora_A`` (R, in) and ``lora_B`` (out, R) by layer, for weights in the order of the adapter's attributes."""
    p, scale = torch.tensor(preference), adapter.config.shape.scale
    return {module: export_lora(weights, p, scale) for module, weights in adapter.layers.items()}


def write_lora(adapter: StoredAdapter, preference: Sequence[float], base_name: str, folder: Path) -> int:
    """Write the LoRA into a new folder, in the fields and keys that every version of stock PEFT knows.

    Args:
        adapter: The ARM.
        preference: Weights in the order of its attributes.
        base_name: What the config calls the model that the LoRA belongs on.
        folder: Where to.

    Returns:
        How many parameters it has.
    """
    folder.mkdir()
    state = {
        tensor_key(module, f"{name}.weight"): tensor.contiguous()
        for module, pair in sorted(fix_preference(adapter, preference).items())
        for name, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    rank = adapter.config.rank_shared + adapter.config.rank_conditioned
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
    }
    (folder / CONFIG).write_bytes(canonical_json(config))
    return sum(tensor.numel() for tensor in state.values())
