"""Renaming and dropping of a folder's tensors, streamed: ignored buffers, unequal tied heads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from armature.modeling.checkpoints.configs import CONFIG, build_on_meta, check_sizes, read_json, tied_names
from armature.modeling.checkpoints.folder import INDEX, locate_tensors, write_index
from armature.modeling.checkpoints.safetensors import ANY_DTYPE, TensorEntry, copy_tensors, tensor_sha256

_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.attn\.masked_bias$")
"""Buffers of older versions of transformers, which newer ones compute."""


def rewrite_tensors(folder: Path, kept: Mapping[str, TensorEntry]) -> None:
    """Leave the tensors ``kept`` in the folder's files, under the names of the mapping; memory is bounded."""
    shards: dict[Path, dict[str, TensorEntry]] = {}
    for name, entry in kept.items():
        shards.setdefault(entry.path, {})[name] = entry
    for path in folder.glob("*.safetensors"):
        if path not in shards:
            path.unlink()
    for path, entries in shards.items():
        partial = path.with_name(f"{path.name}.partial")
        copy_tensors(entries, partial)
        partial.replace(path)
    if (folder / INDEX).exists():
        write_index(kept, folder / INDEX)


def drop_ignored(folder: Path) -> list[str]:
    """Drop tensors that the architecture does not load, such as masks; return their names."""
    model = _skeleton(folder)
    if model is None:
        return []
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), *_OLD_BUFFERS]
    expected = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    stored = locate_tensors(folder, ANY_DTYPE)
    ignored = [
        name for name in stored if name not in expected and any(re.search(pattern, name) for pattern in patterns)
    ]
    if ignored:
        rewrite_tensors(folder, {name: entry for name, entry in stored.items() if name not in ignored})
    return ignored


def untie_unequal(folder: Path) -> list[str]:
    """Set ``tie_word_embeddings`` to false where tied tensors are stored unequal; return their names.

    The library loads such a head untied, and writers that trust the config leave it out: answers would change.
    """
    model = _skeleton(folder)
    if model is None:
        return []
    stored = locate_tensors(folder, ANY_DTYPE)
    unequal = [
        name
        for name, other in tied_names(model.config).items()
        if name in stored and other in stored and tensor_sha256(stored[name]) != tensor_sha256(stored[other])
    ]
    if unequal:
        raw = read_json(folder / CONFIG)
        (folder / CONFIG).write_text(json.dumps(raw | {"tie_word_embeddings": False}, indent=2))
    return unequal


def _skeleton(folder: Path) -> PreTrainedModel | None:
    """Build the folder's model without memory; None where the config is refused later, by name."""
    raw = read_json(folder / CONFIG)
    check_sizes(raw)
    try:
        config: PreTrainedConfig = AutoConfig.for_model(**PreTrainedConfig._decode_special_floats(raw))
        return build_on_meta(config)
    except Exception:  # the check of a family can raise anything
        return None
