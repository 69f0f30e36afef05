"""Subtracting on disk: equal to subtracting in memory, sharded like the base, readable by stock transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from armature.algorithms.selection_rules import select_top
from armature.algorithms.task_vectors import SparseVector, subtract_task_vector
from armature.algorithms.tensor_sources import Difference, LiveTensors
from armature.modeling.checkpoints.editing import Edits, write_edited_checkpoint
from armature.modeling.checkpoints.folder import INDEX, WEIGHTS, open_checkpoint
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.checkpoints.safetensors import StoredTensors
from armature.modeling.layers import decoder_linears
from tests.support.tiny_models import byte_tokenizer, save_tiny_checkpoint, tiny_llama

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def sharded(folder: Path, seed: int, dtype: torch.dtype) -> Path:
    tiny_llama(seed, layers=3).to(dtype).save_pretrained(folder, max_shard_size=20_000)
    byte_tokenizer().save_pretrained(folder)
    return folder


def vector_between(base: Path, tuned: Path) -> SparseVector:
    """Both read lazily from their files."""
    names = [f"{name}.weight" for name in decoder_linears(tiny_llama(layers=3))]
    sources = [StoredTensors(open_checkpoint(folder).tensors) for folder in (tuned, base)]
    return select_top(Difference(*sources, names), 0.1)


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_to_memory_bit_for_bit(dtype: torch.dtype, scale: float, tmp_path: Path) -> None:
    base, tuned = sharded(tmp_path / "base", 0, dtype), sharded(tmp_path / "tuned", 1, dtype)
    vector = vector_between(base, tuned)
    expected, other = load_model(base), load_model(tuned)
    names = list(vector.shapes)
    naive = select_top(Difference(LiveTensors(other.state_dict()), LiveTensors(expected.state_dict()), names), 0.1)
    pairs = zip(naive.tensors.values(), vector.tensors.values(), strict=True)
    assert all(torch.equal(a.indices, b.indices) for a, b in pairs)
    subtract_task_vector(dict(expected.named_parameters()), vector, scale)
    write_edited_checkpoint(open_checkpoint(base), Edits(vector, scale), tmp_path / "safe")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "safe", dtype="auto")
    for name, parameter in expected.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(stock.get_parameter(name), parameter), name
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    shards = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (base, tmp_path / "safe")]
    assert shards[0] == shards[1]
    assert len(shards[0]) >= 3
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "safe" / name).read_bytes() == (base / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"base", "tuned", "safe"}


@pytest.mark.trap(5)
def test_a_tied_tensor_stored_twice_is_edited_once(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "base")
    stored = load_file(folder / WEIGHTS)
    save_file(stored | {HEAD: stored[EMBEDDING].clone()}, folder / WEIGHTS, metadata={"format": "pt"})
    vector = select_top(LiveTensors({EMBEDDING: torch.ones_like(stored[EMBEDDING])}), 1.0)
    write_edited_checkpoint(open_checkpoint(folder), Edits(vector, 0.5), tmp_path / "safe")
    assert HEAD not in load_file(tmp_path / "safe" / WEIGHTS)
    model = load_model(tmp_path / "safe")
    assert torch.equal(model.lm_head.weight, stored[EMBEDDING] - 0.5)
    assert not (tmp_path / "safe" / INDEX).exists()


def test_a_vector_that_does_not_fit_or_a_scale_that_adds_leaves_nothing(tmp_path: Path) -> None:
    base = open_checkpoint(save_tiny_checkpoint(tmp_path / "base"))
    name = "model.layers.0.mlp.up_proj.weight"
    for vector, scale, message in (
        (select_top(LiveTensors({name: torch.ones(2)}), 1.0), 1.0, "no counterpart"),
        (select_top(LiveTensors({"other": torch.ones(2)}), 1.0), 1.0, "no counterpart"),
        (select_top(LiveTensors({name: torch.ones(base.tensors[name].shape)}), 1.0), -1.0, "scale"),
    ):
        with pytest.raises(ValueError, match=message):
            write_edited_checkpoint(base, Edits(vector, scale), tmp_path / "safe")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}
