"""A model's JSON files made plain: no remote code, one chat template, numbers as strict JSON has them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.configs import CONFIG, MAX_JSON_BYTES, REMOTE_CODE_KEYS, TOKENIZER_CONFIG

_TOKENIZER, _SPECIAL = "tokenizer.json", "special_tokens_map.json"


def write_finite_numbers(path: Path) -> bool:
    """Rewrite ``Infinity`` and its like in a config as transformers does; True if there were any.

    JSON has no infinities. The library saves ``{"__float__": "Infinity"}`` and reads both.
    """
    found = []

    def number(text: str) -> Any:
        value = float(text)
        if math.isfinite(value):
            return value
        found.append(text)
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}

    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return False
        value = json.loads(path.read_bytes(), parse_constant=number, parse_float=number, object_pairs_hook=_distinct)
    except (OSError, ValueError, RecursionError):
        return False  # the strict reader says what is wrong
    if found:
        path.write_text(json.dumps(value, indent=2))
    return bool(found)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def drop_remote_code(folder: Path) -> list[str]:
    """Drop keys that ask for remote code beside a native architecture; return their files.

    Another architecture keeps them, and is refused for them.
    """
    config = _load(folder / CONFIG)
    if config is None or not is_native(config):
        return []
    changed = []
    for name in (CONFIG, TOKENIZER_CONFIG):
        value = _load(folder / name)
        if value is not None and (plain := _without_keys(value)) != value:
            (folder / name).write_text(json.dumps(plain, indent=2))
            changed.append(name)
    return changed


def is_native(config: dict[str, Any]) -> bool:
    """Tell whether a config names an architecture that transformers has."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _without_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_keys(item) for key, item in value.items() if key not in REMOTE_CODE_KEYS}
    return [_without_keys(item) for item in value] if isinstance(value, list) else value


def choose_template(folder: Path) -> str | None:
    """Keep one of several named chat templates, ``default``; return the names of the others, joined.

    Raises:
        InvalidCheckpoint: None of several is called ``default``, or the list is malformed.
    """
    config = _load(folder / TOKENIZER_CONFIG)
    templates = config.get("chat_template") if config else None
    if config is None or not isinstance(templates, list):
        return None
    try:
        named = {str(item["name"]): str(item["template"]) for item in templates}
    except (TypeError, KeyError):
        raise InvalidCheckpoint(
            f"{TOKENIZER_CONFIG}: chat_template is neither a text nor a list of named templates", param=TOKENIZER_CONFIG
        ) from None
    if len(named) > 1 and "default" not in named:
        raise InvalidCheckpoint(
            f"{TOKENIZER_CONFIG}: none of the chat templates {', '.join(sorted(named))} is called default",
            param=TOKENIZER_CONFIG,
        )
    chosen = "default" if "default" in named else next(iter(named), None)
    config["chat_template"] = named.get(chosen or "")
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False))
    return ", ".join(sorted(named.keys() - {chosen}))


def drop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """Drop added tokens whose ids the model has no logits for, and mentions of them; return them.

    Text that spells one of them is then encoded like any other, so no prompt has such an id.
    """
    added = tokenizer.added_tokens_decoder
    dropped = {token.content for id, token in added.items() if id >= vocab_size}
    pipeline = json.loads((folder / _TOKENIZER).read_bytes())
    before = pipeline.get("added_tokens") or []
    pipeline["added_tokens"] = [token for token in before if token["id"] < vocab_size]
    if not dropped or len(pipeline["added_tokens"]) == len(before):
        return []
    (folder / _TOKENIZER).write_text(json.dumps(pipeline, ensure_ascii=False))
    for name in (TOKENIZER_CONFIG, _SPECIAL, "added_tokens.json"):
        if (value := _load(folder / name)) is not None:
            (folder / name).write_text(json.dumps(_without_tokens(value, dropped), indent=2, ensure_ascii=False))
    return sorted(dropped)


def _without_tokens(value: Any, dropped: set[str]) -> Any:
    """Leave out every mention of the tokens: as a value, in a list, as a token object, or as a key."""
    if isinstance(value, list):
        return [_without_tokens(item, dropped) for item in value if not _names(item, dropped)]
    if isinstance(value, dict):
        return {
            key: _without_tokens(item, dropped)
            for key, item in value.items()
            if key not in dropped and not _names(item, dropped)
        }
    return value


def _names(item: Any, dropped: set[str]) -> bool:
    return (item.get("content") if isinstance(item, dict) else item if isinstance(item, str) else None) in dropped


def _load(path: Path) -> dict[str, Any] | None:
    """Read a file without judging it, which the strict reader does afterwards; None: no object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
