"""Loading of checked folders: offline, safetensors only, no remote code, strict about every key."""

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
    """Load a folder's fast tokenizer; only ``tokenizer.json`` gives offsets.

    Raises:
        InvalidCheckpoint: It can not be read, or has no end-of-sequence token.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InvalidCheckpoint("tokenizer.json is missing", param="tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("text")  # an invalid file that the library loads unchecked fails at its first use
    except Exception as error:  # the library's parsers can raise anything
        raise InvalidCheckpoint(f"the tokenizer can not be read ({error})", param="tokenizer.json") from error
    if not tokenizer.is_fast:
        raise InvalidCheckpoint("the tokenizer class does not read tokenizer.json", param="tokenizer_config.json")
    if tokenizer.eos_token_id is None:
        raise InvalidCheckpoint("the tokenizer has no end-of-sequence token", param="tokenizer_config.json")
    return tokenizer


def load_config(folder: Path) -> PretrainedConfig:
    """Load the config of a checked model folder."""
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(
    folder: Path, device: str = "cpu", dtype: torch.dtype | None = None, placement: Mapping[str, str] | None = None
) -> PreTrainedModel:
    """Load a folder's model in evaluation mode.

    Args:
        folder: A checked model folder.
        device: The device to load onto.
        dtype: The dtype of the weights; None: the stored one.
        placement: The device of each module by name, instead of ``device``
            (:mod:`armature.modeling.adapters.offloading`).

    Raises:
        InvalidCheckpoint: A key is missing or unexpected, or its shape differs from the config's.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
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
    """Format a key of the loading report; a mismatch comes with the file's shape and the config's."""
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
    """Load the base minus ``scale`` times a task vector: ``theta_s = theta_b - lambda v_m``.

    Without a task vector, load the plain base. The subtraction is rounded once, to the stored dtype, and the result is
    cast to ``dtype``: so a job and a decoder that use other dtypes start from the same numbers.

    Raises:
        AdapterBaseMismatch: The vector was made from a model with other tensors.
    """
    if task_vector is None:
        return load_model(folder, device, dtype)
    model = load_model(folder)
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
