"""base_model.import of multimodal checkpoints: the text part as a model of its own, equal to the wrapper's on text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.loading import load_model
from tests.support.tiny_models import byte_tokenizer
from tests.worker.recipes.test_import_cases import IDS, Imported

TEXT = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WRAPPERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Gemma3ForCausalLM": (
        "gemma3",
        {"model_type": "gemma3_text"},
        {"model_type": "siglip_vision_model"},
        {"mm_tokens_per_image": 4, "image_token_index": 250},
    ),
    "MistralForCausalLM": (
        "mistral3",
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "pixtral", "head_dim": 16},
        {"image_token_index": 250},
    ),
    "Llama4ForCausalLM": (
        "llama4",
        {
            "model_type": "llama4_text",
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
        },
        {
            "model_type": "llama4_vision_model",
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        {"image_token_index": 250},
    ),
    "Qwen3_5ForCausalLM": (
        "qwen3_5",
        {
            "model_type": "qwen3_5_text",
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16},
        {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253},
    ),
    "Gemma4ForCausalLM": (
        "gemma4",
        {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 259,
            "global_head_dim": 8,
            "num_kv_shared_layers": 0,
        },
        {"model_type": "gemma4_vision", "head_dim": 16, "num_key_value_heads": 2, "global_head_dim": 16},
        {"image_token_id": 250, "audio_config": None},
    ),
}


def wrapper_model(name: str) -> PreTrainedModel:
    model_type, text, vision, fields = WRAPPERS[name]
    config = AutoConfig.for_model(model_type, text_config=TEXT | text, vision_config=VISION | vision, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_the_text_part_is_a_model_of_its_own(name: str, tmp_path: Path) -> None:
    whole = wrapper_model(name)
    source = tmp_path / "source"
    whole.save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    wrapper = json.loads((source / "config.json").read_text())["architectures"][0]
    imported = Imported(source)
    assert imported.metadata.architecture == name
    assert imported.events[0] == f"the text part of {wrapper} was kept; its other parts were left behind"
    text = load_model(imported.folder)
    assert type(text).__name__ == name
    torch.testing.assert_close(text(IDS).logits, whole(input_ids=IDS).logits, atol=1e-5, rtol=0)


def test_a_wrapper_without_a_text_model_is_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    byte_tokenizer().save_pretrained(source)
    config = {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "text_config": {"model_type": "qwen2_vl_text"},
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(
        InvalidCheckpoint, match=r"Qwen2VLForConditionalGeneration is multimodal.*qwen2_vl_text"
    ) as caught:
        Imported(source)
    assert caught.value.param == "config.json"
