"""The files of an ARM adapter, read and written without a model: a strict config, tensors by layer.

``adapter_config.json`` and ``adapter_model.safetensors`` have stock PEFT's layout and key names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from armature.algorithms.conditioned_lora import AdapterWeights, ConditionedShape
from armature.contracts.base import canonical_json
from armature.contracts.specs.arm import AdapterShape
from armature.errors import InvalidAdapter
from armature.modeling.adapters.pblora_config import PEFT_TYPE, PBLoRAConfig
from armature.modeling.adapters.peft_pblora import PBLoRALinear
from armature.modeling.checkpoints.safetensors import TensorEntry, check_finite, read_header

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""PEFT's prefix of module names."""


class StoredAdapter(NamedTuple):
    """An adapter as stored in its files."""

    config: PBLoRAConfig
    layers: dict[str, AdapterWeights]
    """Float32 tensors by the name of the adapted layer."""


def read_adapter(folder: Path) -> StoredAdapter:
    """Read an adapter from ``folder``.

    Raises:
        InvalidAdapter: The config is not Armature's, or the tensors are not those that it implies.
        InvalidSafetensors: The tensor file is malformed or holds NaN.
    """
    config = read_config(folder / CONFIG)
    stored = read_header(folder / WEIGHTS, {"F32"})
    sizes = {module: _stored_sizes(stored, module) for module in config.target_modules or ()}
    return StoredAdapter(config, read_layers(folder / WEIGHTS, stored, config.shape, sizes))


def read_layers(
    path: Path, stored: Mapping[str, TensorEntry], shape: ConditionedShape, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, AdapterWeights]:
    """Read all tensors of a file as float32, by layer.

    Args:
        path: The file.
        stored: The file's header.
        shape: The adapter's shape.
        sizes: (in, out) of every adapted layer.

    Raises:
        InvalidAdapter: A tensor is missing, unknown or has another shape; the message lists them.
        InvalidSafetensors: A tensor holds NaN or an infinity.
    """
    expected = {
        tensor_key(module, tensor): tensor_shape
        for module, size in sizes.items()
        for tensor, tensor_shape in zip(PBLoRALinear.adapter_layer_names, shape.tensor_shapes(*size), strict=True)
    }
    require_same("tensors", expected, {key: entry.shape for key, entry in stored.items()})
    check_finite(dict(stored))
    tensors = load_file(path)
    return {
        module: AdapterWeights(
            *(tensors[tensor_key(module, name)].float() for name in PBLoRALinear.adapter_layer_names)
        )
        for module in sizes
    }


def write_adapter(adapter: StoredAdapter, folder: Path) -> None:
    """Write an adapter into the new ``folder``; the same adapter has the same bytes on every machine.

    Layers are listed by their full names: PEFT shortens a long list to suffixes that suffice for one model only.
    """
    folder.mkdir()
    state = {
        tensor_key(module, name): tensor.detach().cpu().contiguous()
        for module, weights in adapter.layers.items()
        for name, tensor in zip(PBLoRALinear.adapter_layer_names, weights, strict=True)
    }
    save_file(dict(sorted(state.items())), folder / WEIGHTS)
    values = {
        **adapter.config.to_dict(),
        "target_modules": sorted(adapter.layers),
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_bytes(canonical_json(values))


def tensor_key(module: str, tensor: str) -> str:
    """Return a tensor's key in the file."""
    return f"{PREFIX}{module}.{tensor}"


def _stored_sizes(stored: Mapping[str, TensorEntry], module: str) -> tuple[int, int]:
    """Return (in, out) of an adapted layer from the stored shapes; zeros if they are missing."""
    a, b = (stored.get(tensor_key(module, tensor)) for tensor in PBLoRALinear.adapter_layer_names[:2])
    return (a.shape[-1] if a and a.shape else 0), (b.shape[0] if b and b.shape else 0)


def read_config(path: Path) -> PBLoRAConfig:
    """Read the config; the fields that determine allocations must be within the contract's bounds.

    Raises:
        InvalidAdapter: The config is not Armature's.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        known = {item.name for item in fields(PBLoRAConfig)}
        if values.get("peft_type") != PEFT_TYPE or not known >= set(values):
            raise ValueError("not the config of an Armature adapter")
        AdapterShape(
            kind=values.get("kind", "pblora"),
            rank_shared=values["rank_shared"],
            rank_conditioned=values["rank_conditioned"],
            alpha=values["lora_alpha"],
            dropout=values["dropout"],
        )
        targets = values["target_modules"]
        if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
            raise ValueError("target_modules must be a list of names")
        return PBLoRAConfig(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError) as error:
        raise InvalidAdapter(f"{path.name} can not be used ({error})", param=path.name) from None


def require_same(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a file whose keys or shapes are not the expected ones.

    Args:
        what: The noun of the keys, for the message.
        expected: Shapes by key.
        found: Shapes by key.

    Raises:
        InvalidAdapter: They differ; the message lists some of the keys.
    """
    for problem, keys in (
        ("lacks", set(expected) - set(found)),
        ("has unknown", set(found) - set(expected)),
        ("has other shapes for", {key for key in set(expected) & set(found) if expected[key] != found[key]}),
    ):
        if keys:
            raise InvalidAdapter(f"the file {problem} {what} {some(sorted(keys))}", param=WEIGHTS)


def some(names: Sequence[str]) -> str:
    """Join the first few names, for a message."""
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
