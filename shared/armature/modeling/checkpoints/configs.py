"""A model's untrusted JSON files, refused if they ask for remote code or for absurd sizes.

A config allocates nothing before it is checked: models are built on the meta device, as shapes without memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from armature.errors import InvalidCheckpoint, InvalidRequest
from armature.strict_json import parse_json

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
REMOTE_CODE_KEYS = frozenset({"auto_map", "custom_code", "custom_pipelines"})
MAX_JSON_BYTES = 64 << 20
_MAX_INTEGER = 1 << 26
_MAX_UNBOUNDED = 1 << 128
"""Tokenizers without a length limit have the integer nearest to 1e30."""
_CONTEXT_LENGTHS = range(2, (1 << 22) + 1)
_EXPERT_COUNT = re.compile(r"(^|_)(num|n)_.*expert|experts?_per")
"""Names of counts; ``moe_intermediate_size`` or ``shared_expert_intermediate_size`` is a width."""
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MAX_LAYERS, _MAX_EXPERTS = 1024, 4096
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file, strictly.

    Raises:
        InvalidCheckpoint: The file is missing, too large or not a JSON object.
    """
    if not path.is_file():
        raise _invalid(f"{path.name} is missing", path.name)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise _invalid(f"{path.name} is larger than {MAX_JSON_BYTES} bytes", path.name)
    try:
        value = parse_json(path.read_bytes(), max_integer=_MAX_UNBOUNDED)
    except InvalidRequest as error:
        raise _invalid(f"{path.name}: {error.param or 'the file'}: {error.message}", path.name) from None
    if not isinstance(value, dict):
        raise _invalid(f"{path.name} is not a JSON object", path.name)
    return value


def _refuse_remote_code(file: str, value: Any) -> None:
    if isinstance(value, dict):
        if found := REMOTE_CODE_KEYS & value.keys():
            raise _invalid(f"{file} asks for remote code ({min(found)})", file)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_remote_code(file, item)


def check_tokenizer_config(value: dict[str, Any]) -> None:
    """Check a ``tokenizer_config.json``.

    Raises:
        InvalidCheckpoint: It asks for remote code, or no tokenizer can be made from it.
    """
    _refuse_remote_code(TOKENIZER_CONFIG, value)
    length = value.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float)):
        raise _invalid(f"{TOKENIZER_CONFIG}: model_max_length is not a number", TOKENIZER_CONFIG)


def check_token_ids(file: str, special: dict[str, Any], vocab_size: int) -> None:
    """Check special token ids: each is None or an id; the end of sequence may be a list of ids.

    Raises:
        InvalidCheckpoint: A value is something else, or outside of the vocabulary.
    """
    for name, value in special.items():
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is not None and not all(type(id) is int and 0 <= id < vocab_size for id in ids):
            raise _invalid(f"{file}: {name} must be token ids from 0 to {vocab_size - 1}", file)


def parse_config(raw: dict[str, Any]) -> PreTrainedConfig:
    """Parse the config of a causal language model that is part of transformers.

    Raises:
        InvalidCheckpoint: It asks for remote code, is of another kind, quantized, or has absurd sizes.
    """
    _refuse_remote_code(CONFIG, raw)
    if raw.get("quantization_config") is not None:
        raise _invalid("quantized weights are not accepted; import the original ones")
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    native = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    if native is None or architectures != [native]:
        raise _invalid(f"{architectures} of model_type {model_type!r} is not a causal language model of transformers")
    check_sizes(raw)
    try:
        config = AutoConfig.for_model(**PreTrainedConfig._decode_special_floats(raw))
    except Exception as error:  # the check of a family can raise anything
        raise _invalid(f"config.json is not a valid {model_type} config ({error})") from error
    return config


def check_sizes(value: Any, key: str = "") -> None:
    """Bound every integer of a config before modules are built from it.

    Raises:
        InvalidCheckpoint: A count of layers or experts, or a size, is absurd.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            check_sizes(item, str(name))
    elif isinstance(value, list):
        for item in value:
            check_sizes(item, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        low, high = (1, _MAX_LAYERS) if key in _LAYER_KEYS else (-_MAX_INTEGER, _MAX_INTEGER)
        if _EXPERT_COUNT.search(key):
            high = _MAX_EXPERTS
        if "theta" in key:  # a frequency base, read as a number
            high = _MAX_UNBOUNDED
        if not low <= value <= high:
            raise _invalid(f"config.json: {key} = {value} is out of range")


def find_context_length(config: PreTrainedConfig) -> int:
    """Return the number of tokens that the model can attend to, whatever its family's key.

    Raises:
        InvalidCheckpoint: The config has none, or an absurd one.
    """
    for key in _CONTEXT_KEYS:
        if type(length := getattr(config, key, None)) is int:
            if length not in _CONTEXT_LENGTHS:
                low, high = _CONTEXT_LENGTHS[0], _CONTEXT_LENGTHS[-1]
                raise _invalid(f"config.json: {key} = {length} is not a context length from {low} to {high}")
            return length
    raise _invalid("config.json names no context length")


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the config's model on the meta device: modules and shapes without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def tied_names(config: PreTrainedConfig) -> dict[str, str]:
    """Return the names of tied parameters, such as a tied head, and the name of the stored one."""
    model = build_on_meta(config)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first[id(parameter)] != name
    }


def count_parameters(config: PreTrainedConfig) -> int:
    """Count the architecture's parameters, tied ones once.

    Raises:
        InvalidCheckpoint: No model can be built from the config.
    """
    try:
        model = build_on_meta(config)
    except Exception as error:
        raise _invalid(f"config.json describes no model that can be built ({error})") from error
    return sum(parameter.numel() for parameter in model.parameters())


def _invalid(message: str, param: str = CONFIG) -> InvalidCheckpoint:
    return InvalidCheckpoint(message, param=param)
