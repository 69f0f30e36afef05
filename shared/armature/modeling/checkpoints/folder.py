"""Model folders: check an untrusted one before any allocation, describe it by digests, write one.

A folder has Hugging Face's layout: ``config.json``, safetensors (one file, or shards and an index), ``tokenizer.json``
with its companions. Bytes decide, not file names: a pickle called ``model.safetensors`` is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.base import digest
from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.configs import (
    CONFIG,
    TOKENIZER_CONFIG,
    check_token_ids,
    check_tokenizer_config,
    count_parameters,
    find_context_length,
    parse_config,
    read_json,
)
from armature.modeling.checkpoints.safetensors import (
    FLOATS,
    TensorEntry,
    check_finite,
    read_header,
    tensor_sha256,
)
from armature.modeling.checkpoints.unsafe_files import refuse_unsafe_files
from armature.modeling.tokenization.vocabularies import digest_tokens

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
GENERATION = "generation_config.json"
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
"""The files of a model beside ``*.safetensors``; other harmless files, such as a README, are not copied."""

_VOLATILE_KEYS = frozenset({"transformers_version", "_name_or_path"})
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Checkpoint:
    """A folder that passed :func:`open_checkpoint`: its config and the location of each tensor."""

    folder: Path
    raw_config: dict[str, Any]
    config: PreTrainedConfig
    context_length: int
    parameters: int
    tensors: dict[str, TensorEntry]
    token_ids: dict[str, Any]
    """The special ids of ``generation_config.json``, if there is one."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a model folder without allocating its weights.

    Raises:
        InvalidCheckpoint: The folder is unsafe, incomplete or inconsistent; ``param`` names the file.
    """
    refuse_unsafe_files({path.name: path for path in sorted(folder.iterdir()) if path.is_file()})
    raw = read_json(folder / CONFIG)
    if (folder / TOKENIZER_CONFIG).exists():
        check_tokenizer_config(read_json(folder / TOKENIZER_CONFIG))
    config = parse_config(raw)
    generation = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    token_ids = {name: generation[name] for name in _TOKEN_IDS if generation.get(name) is not None}
    check_token_ids(GENERATION, token_ids, config.vocab_size)
    check_token_ids(CONFIG, {"eos_token_id": raw.get("eos_token_id")}, config.vocab_size)
    context_length = find_context_length(config)
    tensors = locate_tensors(folder)
    parameters = count_parameters(config)
    stored = sum(entry.elements for entry in tensors.values())
    if parameters > stored:
        raise _invalid(f"config.json describes {parameters} parameters; the weights have {stored}")
    return Checkpoint(folder, raw, config, context_length, parameters, tensors, token_ids)


def locate_tensors(folder: Path, dtypes: Iterable[str] = FLOATS) -> dict[str, TensorEntry]:
    """Read the headers of a folder's safetensors: one file, or the shards that the index names.

    Raises:
        InvalidCheckpoint: A file is missing or malformed, or a tensor has none of the ``dtypes``.
    """
    if not (folder / INDEX).exists():
        if not (folder / WEIGHTS).is_file():
            raise _invalid(f"{WEIGHTS} and {INDEX} are both missing", WEIGHTS)
        return read_header(folder / WEIGHTS, dtypes)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise _invalid(f"{INDEX} has no weight_map", INDEX)
    tensors: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not (folder / shard).is_file():
            raise _invalid(f"{INDEX} names the shard {shard[:128]!r}, which is not in the folder", INDEX)
        entries = read_header(folder / shard, dtypes)
        if entries.keys() != {name for name, file in weight_map.items() if file == shard}:
            raise _invalid(f"{shard} does not have the tensors that {INDEX} lists", shard)
        tensors |= entries
    return tensors


def write_index(entries: Mapping[str, TensorEntry], path: Path) -> None:
    """Write the index of shards, with each tensor in the file that its entry names."""
    index = {
        "metadata": {"total_size": sum(entry.end - entry.start for entry in entries.values())},
        "weight_map": {name: entry.path.name for name, entry in sorted(entries.items())},
    }
    path.write_text(json.dumps(index, indent=2))


def describe_checkpoint(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, license_note: str | None = None
) -> CheckpointMetadata:
    """Compute the metadata of a checked folder, with digests of its config, tokenizer and weights.

    The weights' digest is over the tensors by name, so it does not depend on sharding.

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
        tokens_digest=digest_tokens(tokenizer),
        hidden_size=getattr(checkpoint.config, "hidden_size", None),
        layers=getattr(checkpoint.config, "num_hidden_layers", None),
    )


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest what determines a text's ids: the pipeline and special ids, not chat template or padding."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline = {key: value for key, value in pipeline.items() if key not in ("padding", "truncation")}
    special = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest({"pipeline": pipeline, "special": {name: special[name] for name in special if name != "pad_token"}})


def write_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, shard_bytes: int = 4 << 30
) -> None:
    """Write a model as sharded safetensors for transformers; the folder appears complete or not at all.

    Tied tensors are written once.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, max_shard_size=shard_bytes)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _invalid(message: str, param: str = CONFIG) -> InvalidCheckpoint:
    return InvalidCheckpoint(message, param=param)
