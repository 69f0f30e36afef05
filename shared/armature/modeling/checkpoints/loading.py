"""Load checked folders: always offline, safetensors only, without remote code, and strict about every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from armature.algorithms.task_vectors import SparseVector, subtract_task_vector
from armature.errors import AdapterBaseMismatch, InvalidCheckpoint
from armature.modeling.checkpoints.folder import INDEX, WEIGHTS
from armature.modeling.checkpoints.task_vector import read_task_vector


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, from ``tokenizer.json``; offsets and special tokens are needed from it.

    Raises:
        InvalidCheckpoint: It can not be read, or names no end-of-sequence token.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InvalidCheckpoint("tokenizer.json is missing", param="tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("text")  # what the library reads without a check fails at the first use
    except Exception as error:  # the library raises whatever its parsers do
        raise InvalidCheckpoint(f"the tokenizer can not be read ({error})", param="tokenizer.json") from error
    if not tokenizer.is_fast:
        raise InvalidCheckpoint("the tokenizer class does not read tokenizer.json", param="tokenizer_config.json")
    if tokenizer.eos_token_id is None:
        raise InvalidCheckpoint("the tokenizer names no end-of-sequence token", param="tokenizer_config.json")
    return tokenizer


def load_config(folder: Path) -> PretrainedConfig:
    """What a checked model folder says of its model."""
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(
    folder: Path, device: str = "cpu", dtype: torch.dtype | None = None, placement: Mapping[str, str] | None = None
) -> PreTrainedModel:
    """The folder's model in evaluation mode, in the stored dtype unless another is asked for.

    Args:
        folder: A checked model folder.
        device: Where it runs.
        dtype: Of its weights.
        placement: Where modules live instead, by name (:mod:`armature.modeling.adapters.offloading`).

    Raises:
        InvalidCheckpoint: A key is missing, unexpected or of another shape than the config says.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            device_map=None if placement is None else dict(placement),
        )
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(f"the model can not be loaded ({error})", param="config.json") from error
    file = next((name for name in (INDEX, WEIGHTS) if (folder / name).exists()), WEIGHTS)
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if keys := sorted(_describe(key) for key in report[problem]):
            raise InvalidCheckpoint(f"{problem.replace('_', ' ')}: {', '.join(keys[:8])}", param=file)
    loaded: PreTrainedModel = (model.to(device) if placement is None else model).eval()
    return loaded


def _describe(key: str | tuple[str, torch.Size, torch.Size]) -> str:
    """A key of the loading report; one of another shape comes with the file's shape and the config's."""
    if isinstance(key, str):
        return key
    name, stored, described = key
    return f"{name} is {list(stored)} where config.json says {list(described)}"


def load_safe_model(
    folder: Path,
    task_vector: Path | SparseVector | None,
    scale: float,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The base minus ``scale`` times a task vector (``theta_s = theta_b - lambda v_m``); the plain base for None.

    The result is rounded once: a dtype asked for is cast to after the subtraction, which float32 then holds (trap T6).

    Raises:
        AdapterBaseMismatch: The vector was made from a model of other tensors.
    """
    if task_vector is None:
        return load_model(folder, device, dtype)
    model = load_model(folder, dtype=None if dtype is None else torch.float32)
    try:
        vector = task_vector if isinstance(task_vector, SparseVector) else read_task_vector(task_vector)
        subtract_task_vector(dict(model.named_parameters()), vector, scale)
    except ValueError as error:
        raise AdapterBaseMismatch(f"the harm vector does not fit the base model: {error}") from error
    if dtype is not None:
        for parameter in model.parameters():  # buffers, such as rotary frequencies, keep their precision
            parameter.data = parameter.data.to(dtype)
    placed: PreTrainedModel = model.to(device)
    return placed
