"""ARM adapters on a model: create, save and load strictly.

A folder holds ``adapter_model.safetensors`` and ``adapter_config.json``, which stock PEFT reads too once
:mod:`armature.modeling.adapters.peft_pblora` is imported. The same adapter has the same bytes on every machine.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from armature.algorithms.conditioned_lora import AdapterWeights
from armature.contracts.artifacts import LossForm
from armature.contracts.specs.arm import AdapterShape
from armature.errors import InvalidAdapter
from armature.modeling.adapters.files import (
    WEIGHTS,
    StoredAdapter,
    read_adapter,
    require_same,
    some,
    write_adapter,
)
from armature.modeling.adapters.pblora_config import PBLoRAConfig
from armature.modeling.adapters.peft_pblora import adapter_layers
from armature.modeling.layers import chosen_linears

_warnings_lock = threading.Lock()
"""Warning filters are global to the process: ``catch_warnings`` is not thread-safe."""


def create_arm(
    model: PreTrainedModel, attributes: Sequence[str], shape: AdapterShape, loss_form: LossForm
) -> PeftModel:
    """Attach a new adapter that has no effect yet; only its tensors are trainable.

    Initial values come from torch's global generator.

    Raises:
        InvalidRequest: The model has no layer of the kind ``shape.targets``.
    """
    config = PBLoRAConfig(
        attributes=list(attributes),
        kind=shape.kind,
        rank_shared=shape.rank_shared,
        rank_conditioned=shape.rank_conditioned,
        lora_alpha=shape.alpha,
        dropout=shape.dropout,
        loss_form=loss_form,
        target_modules=find_targets(model, shape),
    )
    return attach_adapter(model, config)


def find_targets(model: PreTrainedModel, shape: AdapterShape) -> list[str]:
    """List the full names of the linear layers to adapt, sorted.

    Full names, since families reuse short ones (GPT-2's c_proj is in attention and MLP).

    Raises:
        InvalidRequest: There are none.
    """
    targets = "both" if shape.targets == "attention_and_mlp" else shape.targets
    return sorted(chosen_linears(model, targets, shape.layers, "spec.adapter"))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the active adapter of ``model`` into the new ``folder``."""
    name = model.active_adapter
    adapted = {key: layer for key, layer in adapter_layers(model).items() if name in layer.pblora_config}
    layers = {key: layer.weights(name) for key, layer in adapted.items()}
    write_adapter(StoredAdapter(model.active_peft_config, layers), folder)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach a saved adapter for inference.

    Raises:
        InvalidAdapter: The config is not Armature's, or the tensors are not exactly those it implies for this model:
            every key present, none extra, shapes equal, all finite.
        InvalidSafetensors: The tensor file is malformed.
    """
    return attach_stored(model, read_adapter(folder))


def attach_stored(model: PreTrainedModel, stored: StoredAdapter) -> PeftModel:
    """Attach an adapter that has been read, for inference.

    Raises:
        InvalidAdapter: The model lacks a layer of the adapter, or has it in another size.
    """
    config, layers = stored
    missing = sorted(set(config.target_modules or ()) - set(dict(model.named_modules())))
    if missing:
        raise _invalid(f"the model has no {some(missing)}")
    adapted = attach_adapter(model, config).eval().requires_grad_(False)
    attached = {name: layer.weights(adapted.active_adapter) for name, layer in adapter_layers(adapted).items()}
    require_same("layers", _shapes(attached), _shapes(layers))
    for name, weights in layers.items():
        for tensor, value in zip(attached[name], weights, strict=True):
            tensor.copy_(value)
    return adapted


def attach_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Call PEFT's ``get_peft_model``, for any of its methods, without a known warning."""
    with _warnings_lock, warnings.catch_warnings():
        # PEFT 0.21.2 reads a property of transformers 5.23 under its deprecated name.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


def _shapes(layers: Mapping[str, AdapterWeights]) -> dict[str, list[torch.Size]]:
    return {name: [tensor.shape for tensor in weights] for name, weights in layers.items()}


def _invalid(reason: str) -> InvalidAdapter:
    return InvalidAdapter(reason, param=WEIGHTS)
