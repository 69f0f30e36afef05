"""Kinds of adapters: stored files that older versions wrote, every kind on disk, in a model, and as a plain LoRA."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.algorithms.conditioned_lora import AdapterWeights
from armature.contracts.artifacts import AdapterKind, AdapterMetadata, Backbone, Canary
from armature.contracts.base import digest
from armature.contracts.specs.arm import AdapterShape
from armature.errors import InvalidAdapter
from armature.modeling.adapters.arm import load_adapter, save_adapter
from armature.modeling.adapters.files import CONFIG, StoredAdapter, read_adapter, write_adapter
from armature.modeling.adapters.lora import merge_delta, write_lora
from armature.modeling.adapters.pblora_config import KINDS, PBLoRAConfig
from armature.modeling.adapters.peft_pblora import preferences
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_family

IDS = torch.tensor([[5, 9, 17, 42, 100]])
ATTRIBUTES = ["empathy", "truthfulness"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def make_shape(kind: AdapterKind) -> AdapterShape:
    return AdapterShape(kind=kind, rank_shared=1, rank_conditioned=2, alpha=3.0, layers="all")


def adapted(kind: AdapterKind, dtype: torch.dtype = torch.float32, family: str = "llama") -> PeftModel:
    model: PreTrainedModel = tiny_family(family).to(dtype)
    return add_random_adapter(model, ATTRIBUTES, shape=make_shape(kind))


@torch.no_grad()
def logits(model: PeftModel, p: list[float]) -> torch.Tensor:
    with preferences(model, torch.tensor([p])):
        return model(IDS).logits[0]


def test_a_contract_s_kind_has_a_shape() -> None:
    assert set(KINDS) == set(get_args(AdapterKind))


def test_a_pblora_adapter_has_the_bytes_that_it_had_before_there_were_kinds(tmp_path: Path) -> None:
    """The digests are those of the revision before."""
    module = "model.layers.0.mlp.up_proj"
    config = PBLoRAConfig(
        attributes=ATTRIBUTES,
        rank_shared=1,
        rank_conditioned=2,
        lora_alpha=4.0,
        dropout=0.25,
        loss_form="sum",
        target_modules=[module],
    )
    shapes = config.shape.tensor_shapes(4, 5)
    weights = AdapterWeights(*(torch.arange(float(rows * columns)).view(rows, columns) / 8 for rows, columns in shapes))
    write_adapter(StoredAdapter(config, {module: weights}), tmp_path / "arm")
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / "arm").iterdir()} == {
        "adapter_config.json": "bfc5d416c985092d721a94924234f0bc50eb145d24d3bbc51a40dd568fa1e8d5",
        "adapter_model.safetensors": "8f4be3eb183c52d1a6c12fe77913db4efa95a602a35e35c122fe3d42369e6754",
    }


def test_a_pblora_adapter_s_metadata_has_the_digest_that_it_had_before_there_were_kinds() -> None:
    metadata = AdapterMetadata(
        attributes=ATTRIBUTES,
        rank_shared=1,
        rank_conditioned=2,
        alpha=4.0,
        loss_form="sum",
        beta=dict.fromkeys(ATTRIBUTES, 2.0),
        backbone=Backbone(model_digest="a" * 64, tokenizer_digest="b" * 64),
        canary=Canary(
            token_ids=[5], preference={"empathy": 1.0}, log_probs=[-1.0], top_token_ids=[3], base_log_probs=[-2.0]
        ),
        parameters=9,
    )
    found = digest(metadata.model_dump(mode="json"))
    assert found == "5327ee5baf5273d546ccf0cb6d500c49df01fec920a563d8bf7abcc1df9798c6"


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_the_same_when_loaded(kind: AdapterKind, dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted(kind, dtype)
    save_adapter(model, tmp_path / "arm")
    loaded = load_adapter(tiny_family("llama").to(dtype), tmp_path / "arm")
    assert loaded.active_peft_config.kind == kind
    for p in ([1.0, 0.0], [0.3, 0.7]):
        assert torch.equal(logits(loaded, p), logits(model, p))
    save_adapter(loaded, tmp_path / "again")
    for file in (tmp_path / "arm").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@EVERY_KIND
def test_the_preference_changes_what_the_model_says(kind: AdapterKind) -> None:
    model = adapted(kind)
    assert not torch.allclose(logits(model, [1.0, 0.0]), logits(model, [0.0, 1.0]), atol=1e-2)


@EVERY_KIND
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer:UserWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_stock_peft_loads_the_lora_of_a_preference(
    kind: AdapterKind, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    model = adapted(kind, dtype)
    save_adapter(model, tmp_path / "arm")
    adapter = read_adapter(tmp_path / "arm")
    count = write_lora(adapter, [0.25, 0.75], "base", tmp_path / "lora")
    plain = PeftModel.from_pretrained(tiny_family("llama").to(dtype), tmp_path / "lora").eval()
    with torch.no_grad():
        found = plain(IDS).logits[0]
    torch.testing.assert_close(found, logits(model, [0.25, 0.75]), atol=tolerance, rtol=tolerance)
    assert count == sum(p.numel() for name, p in plain.named_parameters() if "lora_" in name)
    assert ("lora_bias" in json.loads((tmp_path / "lora" / CONFIG).read_bytes())) == (kind == "modulated")


def test_an_adapter_that_shifts_is_not_merged_into_weights(tmp_path: Path) -> None:
    save_adapter(adapted("modulated"), tmp_path / "arm")
    with pytest.raises(InvalidAdapter, match=r"a modulated adapter needs biases .* arm.export"):
        merge_delta(read_adapter(tmp_path / "arm"), [0.5, 0.5], tiny_family("llama"))


@pytest.mark.parametrize("kind", ["other", None, 3])
def test_a_config_of_another_kind_is_refused(kind: object, tmp_path: Path) -> None:
    save_adapter(adapted("modulated"), tmp_path / "arm")
    config = tmp_path / "arm" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"kind": kind}))
    with pytest.raises(InvalidAdapter, match="kind"):
        read_adapter(tmp_path / "arm")


def test_tensors_of_one_kind_are_not_read_as_another(tmp_path: Path) -> None:
    save_adapter(adapted("modulated"), tmp_path / "arm")
    config = tmp_path / "arm" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"kind": "scaled"}))
    with pytest.raises(InvalidAdapter, match="other shapes"):
        read_adapter(tmp_path / "arm")
