"""Random pairs of checkpoints, a base and a slightly changed copy, written in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig

from armature.algorithms.tensor_sources import blocks
from armature.modeling.checkpoints.folder import INDEX
from armature.modeling.checkpoints.safetensors import encode_header

_WIDTHS = {1 << 30: 2048, 1 << 25: 512, 0: 128}
"""Hidden width by the smallest checkpoint, in bytes, that has it."""


def write_pair(folder: Path, size: float, shards: int) -> tuple[Path, Path]:
    """Write a bfloat16 Llama of about ``size`` bytes and a changed copy, each in ``shards`` files.

    The difference is a tenth of the weights' spread. In bfloat16 it takes few distinct values, so there are many ties
    at the threshold.
    """
    shapes, config = _llama(size)
    generator = torch.Generator().manual_seed(0)
    base, tuned = folder / "base", folder / "tuned"
    for path in (base, tuned):
        path.mkdir(parents=True)
        config.save_pretrained(path)
    names = list(shapes)
    weight_map = {
        name: _shard(min(index * shards // len(names), shards - 1), shards) for index, name in enumerate(names)
    }
    for file in sorted(set(weight_map.values())):
        _write(base / file, tuned / file, {n: shapes[n] for n in names if weight_map[n] == file}, generator)
    for path in (base, tuned):
        total = sum((path / file).stat().st_size for file in set(weight_map.values()))
        (path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return base, tuned


def _llama(size: float) -> tuple[dict[str, tuple[int, ...]], LlamaConfig]:
    hidden = next(width for least, width in _WIDTHS.items() if size >= least)
    intermediate, vocabulary = hidden * 11 // 4, hidden * 16
    layer = {
        **{f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"},
        **{f"mlp.{part}_proj.weight": (intermediate, hidden) for part in ("gate", "up")},
        "mlp.down_proj.weight": (hidden, intermediate),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    per_layer = sum(torch.Size(shape).numel() for shape in layer.values())
    layers = max(1, round((size / 2 - vocabulary * hidden) / per_layer))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    return shapes, config


def _shard(index: int, shards: int) -> str:
    return f"model-{index + 1:05d}-of-{shards:05d}.safetensors"


def _write(base: Path, tuned: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    header = encode_header({name: ("BF16", shape) for name, shape in shapes.items()})
    with base.open("wb") as base_file, tuned.open("wb") as tuned_file:
        base_file.write(header)
        tuned_file.write(header)
        for name, shape in shapes.items():
            for _, start, stop in blocks({name: shape}):
                weights = torch.randn(stop - start, generator=generator).mul_(0.02)
                step = torch.randn(stop - start, generator=generator).mul_(0.002)
                base_file.write(weights.bfloat16().view(torch.uint8).numpy().data)
                tuned_file.write((weights + step).bfloat16().view(torch.uint8).numpy().data)
