"""base_model.import of quantised safetensors: the values that the stored numbers stand for, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armature.contracts.artifacts import CheckpointMetadata
from armature.errors import InvalidCheckpoint
from tests.support.recipe_context import as_input
from tests.support.recipe_world import World, harm_spec
from tests.support.tiny_models import save_tiny_checkpoint, tiny_family, tiny_llama
from tests.worker.recipes.test_import_cases import Imported, edit_json

BLOCK = 16
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def quantise_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale blocks of 16 x 16 to 8-bit floats; returns the numbers, the scale of each block, and their values."""
    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
    scales = blocks.abs().amax((1, 3)) / 448
    numbers = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (numbers.float() * scales[:, None, :, None]).reshape(weight.shape)
    return numbers.reshape(weight.shape), scales, values


@pytest.fixture
def fp8(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny Llama as block-wise fp8, and the values that each tensor stands for."""
    source = save_tiny_checkpoint(tmp_path / "source", tiny_llama())
    stored, values = {}, load_file(source / "model.safetensors")
    for name, weight in list(values.items()):
        if "proj" in name:
            stored[name], stored[f"{name}_scale_inv"], values[name] = quantise_fp8(weight)
        else:
            stored[name] = weight
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    method = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    edit_json(source / "config.json", lambda config: config.update(quantization_config=method))
    return source, values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_is_dequantised(dtype: str, fp8: tuple[Path, dict[str, torch.Tensor]]) -> None:
    source, values = fp8
    imported = Imported(source, dtype=dtype)
    weights = load_file(imported.folder / "model.safetensors")
    assert weights.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(weights[name], value.to(getattr(torch, dtype))), name
    metadata = imported.metadata
    assert isinstance(metadata, CheckpointMetadata)
    assert metadata.origin is not None
    assert (metadata.dtype, metadata.origin.format, metadata.origin.quantisation) == (dtype, "fp8", "F8_E4M3")
    assert 8 < metadata.origin.bits_per_weight < 24
    assert imported.events[0].startswith("weights dequantised from fp8 F8_E4M3")
    assert "quantization_config" not in json.loads((imported.folder / "config.json").read_text())


def test_the_card_of_an_export_says_what_the_weights_were(fp8: tuple[Path, dict[str, torch.Tensor]]) -> None:
    source, _ = fp8
    world = World(source.parent)
    world.import_model(source)
    world.artifacts["vector"] = as_input(world.run(harm_spec()).outputs[0])
    spec = {"kind": "checkpoint.export", "base_model": "base", "harm_vector": "vector", "harm_scale": 1.0}
    (exported,) = world.run(spec).outputs
    assert "weights of the base: dequantised from fp8 F8_E4M3\n" in (exported.path / "README.md").read_text()


def test_mxfp4_is_dequantised(tmp_path: Path) -> None:
    """GPT-OSS as published: two 4-bit numbers a byte, the low half first, and one power of two for 32 of them."""
    settings = {"num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    model = tiny_family("gpt_oss", **settings, hidden_size=64, intermediate_size=32)
    source = save_tiny_checkpoint(tmp_path / "source", model)
    stored = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for name, rows, columns in (("gate_up_proj", 64, 64), ("down_proj", 64, 32)):
        key = f"model.layers.0.mlp.experts.{name}"
        del stored[key]
        packed = torch.randint(0, 256, (2, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 128, (2, rows, columns // 32), dtype=torch.uint8, generator=generator)
        stored |= {f"{key}_blocks": packed, f"{key}_scales": scales}
        halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        numbers = torch.tensor(_FP4)[halves.long()] * torch.exp2(scales.float() - 127)[..., None]
        expected[key] = numbers.flatten(-2).transpose(1, 2)
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    edit_json(source / "config.json", lambda config: config.update(quantization_config={"quant_method": "mxfp4"}))
    imported = Imported(source)
    weights = load_file(imported.folder / "model.safetensors")
    for name, value in expected.items():
        assert torch.equal(weights[name].float(), value), name


REFUSED = {
    "awq": {"bits": 4},
    "gptq": {"bits": 4},
    "bitsandbytes": {"load_in_4bit": True},
    "hqq": {},
    "auto-round": {},
    "unheard-of": {},
}


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_other_methods_are_refused_by_name(method: str, tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "source")
    settings: dict[str, Any] = {"quant_method": method, **REFUSED[method]}
    edit_json(source / "config.json", lambda config: config.update(quantization_config=settings))
    with pytest.raises(InvalidCheckpoint, match=f"by .{method}.* on a CPU; import the original weights") as caught:
        Imported(source)
    assert caught.value.param == "config.json"


def test_compressed_tensors_need_their_package(tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "source")
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    edit_json(source / "config.json", lambda config: config.update(quantization_config=settings))
    with pytest.raises(InvalidCheckpoint, match="compressed-tensors need the package compressed-tensors on the worker"):
        Imported(source)


def test_weights_that_do_not_fit_their_config(fp8: tuple[Path, dict[str, torch.Tensor]]) -> None:
    source, _ = fp8
    edit_json(source / "config.json", lambda config: config.update(num_hidden_layers=1000))
    with pytest.raises(InvalidCheckpoint, match="parameters; the weights have at most"):
        Imported(source)
