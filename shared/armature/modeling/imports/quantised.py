"""Quantised safetensors: dequantised where transformers can on a CPU, else refused by name."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from armature.contracts.weights import WeightsOrigin
from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.configs import CONFIG, count_parameters, parse_config, read_json
from armature.modeling.checkpoints.folder import locate_tensors
from armature.modeling.checkpoints.safetensors import ANY_DTYPE, TensorEntry

_KEY = "quantization_config"
_REMEDY = "import the original weights that they were made from, or a GGUF file of the model"
_PER_BYTE = 2
"""Weights that a stored byte holds at most: 4 bits each."""


@dataclass(frozen=True)
class _Method:
    """A method that transformers dequantises on a CPU, and the package that it needs for that."""

    quantisation: str
    package: str | None = None


_METHODS = {
    "fp8": _Method("F8_E4M3"),
    "mxfp4": _Method("MXFP4"),
    "compressed-tensors": _Method("compressed", "compressed_tensors"),
}


def dequantise(folder: Path, dtype: torch.dtype) -> WeightsOrigin | None:
    """Dequantise a folder's weights to ``dtype`` in place; None if they are plain.

    Raises:
        InvalidCheckpoint: The method can not be dequantised here, or the weights do not fit the config.
    """
    raw = read_json(folder / CONFIG)
    settings = raw.get(_KEY)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    known = _require_method(method)
    stored = locate_tensors(folder, ANY_DTYPE)
    _check_fit({key: value for key, value in raw.items() if key != _KEY}, stored)
    model = _load(folder, settings, dtype)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    plain = folder.with_name(f"{folder.name}.plain")
    model._weight_conversions = None  # else saving would undo the dequantisation
    model.save_pretrained(plain)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for path in plain.glob("*.safetensors*"):
        path.rename(folder / path.name)
    shutil.rmtree(plain)
    name = str(torch.empty(0, dtype=dtype).dtype).removeprefix("torch.")
    plain_config = {key: value for key, value in raw.items() if key not in (_KEY, "torch_dtype")} | {"dtype": name}
    (folder / CONFIG).write_text(json.dumps(plain_config, indent=2))
    size = sum(entry.end - entry.start for entry in stored.values())
    return WeightsOrigin(
        format=str(method), quantisation=known.quantisation, bits_per_weight=round(8 * size / parameters, 3)
    )


def _require_method(method: Any) -> _Method:
    known = _METHODS.get(method) if isinstance(method, str) else None
    if known is None:
        raise _refused(f"weights quantised by {method!r} can not be dequantised on a CPU; {_REMEDY}")
    if known.package and importlib.util.find_spec(known.package) is None:
        package = known.package.replace("_", "-")
        raise _refused(
            f"weights quantised by {method} need the package {package} on the worker; install it, or {_REMEDY}"
        )
    return known


def _check_fit(raw: dict[str, Any], stored: Mapping[str, TensorEntry]) -> None:
    """Refuse a config that would allocate more than the files can hold."""
    parameters = count_parameters(parse_config(raw))
    held = sum(_PER_BYTE * (entry.end - entry.start) for entry in stored.values())
    if parameters > held:
        raise _refused(f"config.json describes {parameters} parameters; the weights have at most {math.floor(held)}")


def _load(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING[settings["quant_method"]]
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=kind(dequantize=True),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # the conversion of a method can raise anything
        raise _refused(
            f"weights quantised by {settings['quant_method']} can not be read ({error}); {_REMEDY}"
        ) from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if keys := sorted(str(key) for key in report[problem]):
            raise _refused(f"{problem.replace('_', ' ')} of the quantised weights: {', '.join(keys[:8])}")
    return model.to(dtype)


def _refused(message: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(message, param=CONFIG)
