"""Model folders: refuse what is unsafe or inconsistent before anything is allocated, hash what is left, write our own.

A folder is Hugging Face's layout: ``config.json``, safetensors (one file, or shards and an index), ``tokenizer.json``
with its companions. The bytes decide, not the file names: a pickle called ``model.safetensors`` is refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.base import digest
from armature.contracts.strict_json import parse_json
from armature.errors import InvalidCheckpoint, InvalidRequest
from armature.modeling.safetensors_files import TensorEntry, check_finite, read_header, tensor_sha256
from armature.modeling.vocabularies import digest_vocabulary

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MODEL_FILES = frozenset(
    {
        CONFIG,
        INDEX,
        GENERATION,
        "tokenizer.json",
        TOKENIZER_CONFIG,
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
    }
)
"""What a model folder may hold beside ``*.safetensors``; other harmless files, such as a README, are left behind."""

_UNSAFE_SUFFIX = re.compile(r"\.(bin|pt|pth|pt2|pkl|pickle|joblib|ckpt|npz|npy|h5|msgpack|zip|tar|gz)", re.IGNORECASE)
_MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy file",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
}
_REMOTE_CODE_KEYS = frozenset({"auto_map", "custom_code", "custom_pipelines"})
_MAX_JSON_BYTES = 64 << 20
_MAX_INTEGER = 1 << 26
_MAX_UNBOUNDED = 1 << 128
"""Tokenizers without a limit on length say so with the integer nearest to 1e30."""
_CONTEXT_LENGTHS = range(2, (1 << 22) + 1)
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MAX_LAYERS, _MAX_EXPERTS = 1024, 4096
_VOLATILE_KEYS = frozenset({"transformers_version", "_name_or_path"})
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Checkpoint:
    """A folder that passed :func:`open_checkpoint`: its config, and where each tensor lies."""

    folder: Path
    raw_config: dict[str, Any]
    config: PreTrainedConfig
    context_length: int
    parameters: int
    tensors: dict[str, TensorEntry]
    token_ids: dict[str, Any]
    """The special ids of ``generation_config.json``, where there is one."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a model folder without allocating its weights.

    Raises:
        InvalidCheckpoint: The folder is unsafe, incomplete or contradicts itself; ``param`` names the file.
    """
    refuse_unsafe_files({path.name: path for path in sorted(folder.iterdir()) if path.is_file()})
    raw = _read_json(folder / CONFIG)
    _refuse_remote_code(CONFIG, raw)
    if (folder / TOKENIZER_CONFIG).exists():
        _check_tokenizer_config(_read_json(folder / TOKENIZER_CONFIG))
    config = _parse_config(raw)
    generation = _read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    token_ids = {name: generation[name] for name in _TOKEN_IDS if generation.get(name) is not None}
    _check_token_ids(GENERATION, token_ids, config.vocab_size)
    _check_token_ids(CONFIG, {"eos_token_id": raw.get("eos_token_id")}, config.vocab_size)
    context_length = _context_length(config)
    tensors = _locate_tensors(folder)
    parameters = _count_parameters(config)
    stored = sum(entry.elements for entry in tensors.values())
    if parameters > stored:
        raise _invalid(f"config.json describes {parameters} parameters; the weights hold {stored}")
    return Checkpoint(folder, raw, config, context_length, parameters, tensors, token_ids)


def refuse_unsafe_files(files: Mapping[str, Path]) -> None:
    """Refuse code, pickles and archives, by what the bytes are and by suffix.

    Args:
        files: Paths by the names that the files have in the model's folder.

    Raises:
        InvalidCheckpoint: Naming the file.
    """
    for name, path in files.items():
        suffix = Path(name).suffix
        if suffix == ".py":
            raise _invalid(f"{name} is code; models that need their own code are not accepted", name)
        with path.open("rb") as file:
            start = file.read(9)
        if suffix == ".safetensors" and start[8:] == b"{":
            continue  # its first eight bytes are a length, and may spell any magic
        kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
        if kind is None and _UNSAFE_SUFFIX.fullmatch(suffix):
            kind = f"a {suffix} file"
        if kind is not None:
            raise _invalid(f"{name} is {kind}; weights must be safetensors", name)


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The config's model on the meta device: modules and shapes without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def tied_names(config: PreTrainedConfig) -> dict[str, str]:
    """Names of parameters that are another one's storage, such as a tied head, and the name that stands for both."""
    model = build_on_meta(config)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first[id(parameter)] != name
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _invalid(f"{path.name} is missing", path.name)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise _invalid(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes", path.name)
    try:
        value = parse_json(path.read_bytes(), max_integer=_MAX_UNBOUNDED)
    except InvalidRequest as error:
        raise _invalid(f"{path.name}: {error.param or 'the file'}: {error.message}", path.name) from None
    if not isinstance(value, dict):
        raise _invalid(f"{path.name} is not a JSON object", path.name)
    return value


def _refuse_remote_code(file: str, value: Any) -> None:
    if isinstance(value, dict):
        if found := _REMOTE_CODE_KEYS & value.keys():
            raise _invalid(f"{file} asks for remote code ({min(found)})", file)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_remote_code(file, item)


def _check_tokenizer_config(value: dict[str, Any]) -> None:
    _refuse_remote_code(TOKENIZER_CONFIG, value)
    length = value.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float)):
        raise _invalid(f"{TOKENIZER_CONFIG}: model_max_length is not a number", TOKENIZER_CONFIG)


def _check_token_ids(file: str, given: dict[str, Any], vocab_size: int) -> None:
    """A special id is absent, an id, or a list of ids where a sequence may end in several ways."""
    for name, value in given.items():
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is not None and not all(type(id) is int and 0 <= id < vocab_size for id in ids):
            raise _invalid(f"{file}: {name} must be token ids from 0 to {vocab_size - 1}", file)


def _parse_config(raw: dict[str, Any]) -> PreTrainedConfig:
    if "quantization_config" in raw:
        raise _invalid("quantised weights are not accepted; import the original ones")
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    native = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    if native is None or architectures != [native]:
        raise _invalid(f"{architectures} of model_type {model_type!r} is not a causal language model known to us")
    _check_integers(raw)
    try:
        config = AutoConfig.for_model(**raw)
    except Exception as error:  # each family checks its config in its own way
        raise _invalid(f"config.json is not a valid {model_type} config ({error})") from error
    return config


def _check_integers(value: Any, key: str = "") -> None:
    """Bound every integer before a config or a module list is built from it."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_integers(item, str(name))
    elif isinstance(value, list):
        for item in value:
            _check_integers(item, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        low, high = (1, _MAX_LAYERS) if key in _LAYER_KEYS else (-_MAX_INTEGER, _MAX_INTEGER)
        if "expert" in key:
            high = _MAX_EXPERTS
        if not low <= value <= high:
            raise _invalid(f"config.json: {key} = {value} is out of range")


def _count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of the architecture, tied ones once, built on the meta device: shapes without memory."""
    try:
        model = build_on_meta(config)
    except Exception as error:
        raise _invalid(f"config.json describes no model that can be built ({error})") from error
    return sum(parameter.numel() for parameter in model.parameters())


def _locate_tensors(folder: Path) -> dict[str, TensorEntry]:
    if not (folder / INDEX).exists():
        if not (folder / WEIGHTS).is_file():
            raise _invalid(f"neither {WEIGHTS} nor {INDEX} is there", WEIGHTS)
        return read_header(folder / WEIGHTS)
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise _invalid(f"{INDEX} has no weight_map", INDEX)
    tensors: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not (folder / shard).is_file():
            raise _invalid(f"{INDEX} names the shard {shard[:128]!r}, which is not in the folder", INDEX)
        entries = read_header(folder / shard)
        if entries.keys() != {name for name, file in weight_map.items() if file == shard}:
            raise _invalid(f"{shard} does not hold the tensors that {INDEX} says", shard)
        tensors |= entries
    return tensors


def describe_checkpoint(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, license_note: str | None = None
) -> CheckpointMetadata:
    """The metadata of a checked folder, with digests of its config, tokenizer and weights.

    The weights' digest goes tensor by tensor in name order, so it does not depend on sharding.

    Raises:
        InvalidCheckpoint: A weight is NaN or infinite.
    """
    check_finite(checkpoint.tensors)
    weights = {
        name: [entry.dtype, list(entry.shape), tensor_sha256(entry)] for name, entry in checkpoint.tensors.items()
    }
    weights_digest, tokenizer_digest = digest(weights), digest_tokenizer(tokenizer)
    config = {key: value for key, value in checkpoint.raw_config.items() if key not in _VOLATILE_KEYS}
    dtypes = [entry.dtype for entry in checkpoint.tensors.values()]
    return CheckpointMetadata(
        model_digest=digest({"config": config, "tokenizer": tokenizer_digest, "weights": weights_digest}),
        tokenizer_digest=tokenizer_digest,
        weights_digest=weights_digest,
        architecture=checkpoint.raw_config["architectures"][0],
        parameters=checkpoint.parameters,
        dtype=_DTYPE_NAMES[max(sorted(set(dtypes)), key=dtypes.count)],
        vocab_size=checkpoint.config.vocab_size,
        context_length=checkpoint.context_length,
        chat_template=bool(tokenizer.chat_template),
        license_note=license_note,
        vocabulary_digest=digest_vocabulary(tokenizer),
        hidden_size=getattr(checkpoint.config, "hidden_size", None),
        layers=getattr(checkpoint.config, "num_hidden_layers", None),
    )


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides which ids a text gets: the whole pipeline and the special ids, not the chat template or padding."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline = {key: value for key, value in pipeline.items() if key not in ("padding", "truncation")}
    special = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest({"pipeline": pipeline, "special": {name: special[name] for name in special if name != "pad_token"}})


def _context_length(config: PreTrainedConfig) -> int:
    for key in _CONTEXT_KEYS:
        if type(length := getattr(config, key, None)) is int:
            if length not in _CONTEXT_LENGTHS:
                low, high = _CONTEXT_LENGTHS[0], _CONTEXT_LENGTHS[-1]
                raise _invalid(f"config.json: {key} = {length} is not a context length from {low} to {high}")
            return length
    raise _invalid("config.json names no context length")


def write_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, shard_bytes: int = 4 << 30
) -> None:
    """Write a model as sharded safetensors that stock transformers loads; the folder appears whole or not at all.

    Tied tensors are written once.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, max_shard_size=shard_bytes)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _invalid(message: str, param: str = CONFIG) -> InvalidCheckpoint:
    return InvalidCheckpoint(message, param=param)
