"""Adapters written by PARM's own code (arXiv 2505.06274), read as untrusted files.

The tensors have Armature's names: ``pblora_A``, ``pblora_B``, ``pblora_W1``, ``pblora_W2``. The config differs:

- objectives are counted (``obj_num``), not named: the import names them, in training order;
- the scale is ``lora_alpha / r2`` for both halves, as in Armature;
- ``pref_vec_init`` is the preference of one run, not part of the adapter, and is dropped;
- ``target_modules`` are suffixes of module names. Patterns are refused, never compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from torch import nn
from transformers import PreTrainedModel

from armature.contracts.base import Contract
from armature.errors import InvalidAdapter, InvalidRequest
from armature.modeling.adapters.files import CONFIG, WEIGHTS, StoredAdapter, read_layers, some
from armature.modeling.adapters.pblora_config import PBLoRAConfig
from armature.modeling.checkpoints.safetensors import FLOATS, read_header
from armature.modeling.checkpoints.unsafe_files import refuse_unsafe_files
from armature.modeling.layers import decoder_layers, decoder_linears, linear_size
from armature.strict_json import parse_json

_MAX_CONFIG_BYTES = 1 << 20
ModuleEnding = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,15}$", max_length=256)]
LayerNumber = Annotated[int, Field(ge=0, le=1023)]


class _ParmConfig(Contract):
    """``adapter_config.json`` of PARM's fork of PEFT; a field that changes the delta allows one value."""

    peft_type: Literal["PBLORA"]
    r1: int = Field(ge=1, le=256)
    r2: int = Field(ge=1, le=64)
    obj_num: int = Field(ge=1, le=64)
    lora_alpha: float = Field(gt=0, le=1024)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[ModuleEnding] = Field(min_length=1, max_length=4096)
    layers_to_transform: list[LayerNumber] | LayerNumber | None = None
    layers_pattern: None = None
    pref_vec_init: list[float] | None = None
    fan_in_fan_out: Literal[False] = False
    bias: Literal["none"] = "none"
    modules_to_save: None = None
    auto_mapping: None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    inference_mode: bool = False


def read_parm_adapter(folder: Path, model: PreTrainedModel, attributes: Sequence[str], loss_form: str) -> StoredAdapter:
    """Read PARM's two files as an Armature adapter.

    Args:
        folder: The folder of ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: The model that the adapter was trained on, which determines the layers it must have tensors for.
        attributes: The objectives' names, in training order.
        loss_form: The form of the training loss.

    Raises:
        InvalidAdapter: The config is not PARM's, or the tensors are not exactly those that it implies for the model.
        InvalidCheckpoint: The weights are a pickle or an archive.
        InvalidSafetensors: The weights are malformed or hold NaN.
    """
    refuse_unsafe_files({WEIGHTS: folder / WEIGHTS})
    config = _read_config(folder / CONFIG)
    if config.obj_num != len(attributes):
        raise InvalidAdapter(
            f"the adapter has {config.obj_num} objectives, not {len(attributes)}", param="spec.attributes"
        )
    ours = PBLoRAConfig(
        attributes=list(attributes),
        rank_shared=config.r1,
        rank_conditioned=config.r2,
        lora_alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        loss_form=loss_form,
    )
    sizes = {name: linear_size(module) for name, module in _targets(model, config).items()}
    stored = read_header(folder / WEIGHTS, FLOATS)
    return StoredAdapter(ours, read_layers(folder / WEIGHTS, stored, ours.shape, sizes))


def _read_config(path: Path) -> _ParmConfig:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{CONFIG} is larger than {_MAX_CONFIG_BYTES} bytes", param=CONFIG)
    try:
        return _ParmConfig.model_validate(parse_json(path.read_bytes()))
    except InvalidRequest as error:
        raise InvalidAdapter(f"{CONFIG}: {error.param or 'the file'}: {error.message}", param=CONFIG) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidAdapter(f"{CONFIG}: {where or 'the file'}: {first['msg']}", param=CONFIG) from None


def _targets(model: PreTrainedModel, config: _ParmConfig) -> dict[str, nn.Module]:
    """Return the linear layers that match the config's suffixes, each of which must match one."""
    stack, layers = decoder_layers(model)
    chosen = config.layers_to_transform
    numbers = {chosen} if isinstance(chosen, int) else set(range(len(layers)) if chosen is None else chosen)
    endings = {f".{ending}" for ending in config.target_modules}
    found = {
        name: module
        for name, module in decoder_linears(model).items()
        if int(name.removeprefix(f"{stack}.").split(".")[0]) in numbers
        and any(f".{name}".endswith(ending) for ending in endings)
    }
    missing = sorted(ending[1:] for ending in endings if not any(f".{name}".endswith(ending) for name in found))
    if missing or not numbers <= set(range(len(layers))):
        raise InvalidAdapter(f"{CONFIG}: the model has no {some(missing) or 'such layer'}", param=CONFIG)
    return found
