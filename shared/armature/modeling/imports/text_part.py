"""The text part of a multimodal checkpoint as a model of its own: its config and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.configs import CONFIG, read_json
from armature.modeling.checkpoints.folder import locate_tensors
from armature.modeling.checkpoints.safetensors import ANY_DTYPE, TensorEntry
from armature.modeling.imports.stored_tensors import rewrite_tensors

_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
)
"""Names of the text part's tensors in wrappers, older and newer, and in the text model alone."""
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
"""Keys that wrappers keep beside the text part's config."""
_QUANTISED = "quantization_config"
_HEAD = "lm_head.weight"


def keep_text_part(folder: Path) -> str | None:
    """Reduce a multimodal folder to its text model; return the wrapper's name, None for a text model.

    Raises:
        InvalidCheckpoint: transformers has no text model of that type, or the tensors are not where wrappers keep them.
    """
    raw = read_json(folder / CONFIG)
    text = raw.get("text_config")
    if not isinstance(text, dict):
        return None
    wrapper = str((raw.get("architectures") or [raw.get("model_type")])[0])
    model_type = text.get("model_type")
    native = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    if native is None:
        raise InvalidCheckpoint(
            f"{wrapper} is multimodal, and transformers has no text model for its text_config of type {model_type!r}",
            param=CONFIG,
        )
    kept = _text_tensors(locate_tensors(folder, ANY_DTYPE))
    if not any(name.startswith("model.") for name in kept):
        raise InvalidCheckpoint(f"{wrapper} has no tensors below language_model", param=CONFIG)
    config = _text_config(raw, text, native)
    if _HEAD not in kept:
        config["tie_word_embeddings"] = True
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    rewrite_tensors(folder, kept)
    return wrapper


def _text_tensors(stored: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    kept = {}
    for name, entry in stored.items():
        for prefix, own in _PREFIXES:
            if name.startswith(prefix):
                kept[own + name.removeprefix(prefix)] = entry
                break
    return kept


def _text_config(raw: dict[str, Any], text: dict[str, Any], native: str) -> dict[str, Any]:
    shared = {key: raw[key] for key in (*_SHARED, _QUANTISED) if raw.get(key) is not None}
    return (
        shared
        | {key: value for key, value in text.items() if key not in shared or value is not None}
        | {"architectures": [native]}
    )
