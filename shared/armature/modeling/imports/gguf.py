"""Conversion of a GGUF file into a plain folder: weights, config, tokenizer, chat template."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig

from armature.contracts.weights import WeightsOrigin
from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.configs import check_sizes, count_parameters
from armature.modeling.imports.gguf_header import GgufHeader, read_gguf_header


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype) -> WeightsOrigin:
    """Write the model of a GGUF file into ``folder``, dequantised to ``dtype``.

    Raises:
        InvalidCheckpoint: The file is malformed, or transformers does not convert its architecture or a type in it.
    """
    header = read_gguf_header(path)
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        _check(header, config)
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            config=config,
            gguf_file=path.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except InvalidCheckpoint:
        raise
    except Exception as error:  # the conversion of a family can raise anything
        family = header.values.get("general.architecture")
        raise InvalidCheckpoint(
            f"{path.name} of GGUF architecture {family!r} can not be converted ({error}); import its safetensors",
            param=path.name,
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InvalidCheckpoint(f"{path.name} lacks tensors: {', '.join(missing[:8])}", param=path.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _origin(header)


def _check(header: GgufHeader, config: PreTrainedConfig) -> None:
    """Refuse a config that would allocate more than the file has."""
    check_sizes(config.to_dict())
    parameters = count_parameters(config)
    if parameters > header.elements:
        raise InvalidCheckpoint(
            f"{header.path.name} describes {parameters} parameters; its tensors have {header.elements}",
            param=header.path.name,
        )


def _origin(header: GgufHeader) -> WeightsOrigin:
    """Describe the stored weights: the type that most of them have, and the mean bits of all."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.kind.name] += tensor.size
    bits = 8 * sizes.total() / header.elements
    return WeightsOrigin(format="gguf", quantisation=sizes.most_common(1)[0][0], bits_per_weight=round(bits, 3))
