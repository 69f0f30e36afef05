"""base_model.import of folders as people have them: leftovers, masks, odd configs, tokens past the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from armature.contracts.specs import parse_spec
from armature.errors import InvalidCheckpoint
from armature.inference.model import vocabulary_size
from armature.modeling.checkpoints.editing import Edits, write_safe_checkpoint
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from armature.settings import ImportSettings
from armature_worker.recipes.base_model import run
from tests.support.recipe_context import LocalContext
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, save_tiny_checkpoint, tiny_family, tiny_llama

IDS = torch.tensor([[5, 9, 17, 42, 100]])


class Imported:
    """An import that succeeded: its folder and its events."""

    def __init__(self, source: Path, **fields: Any) -> None:
        workdir = source.with_name("work")
        workdir.mkdir()
        context = LocalContext(workdir, imports=ImportSettings(roots=[source.parent]))
        place = {"type": "folder", "path": str(source)}
        result = run(parse_spec({"kind": "base_model.import", "name": "tiny", "source": place} | fields), context)
        self.folder, self.metadata = result.outputs[0].path, result.outputs[0].metadata
        self.events = [message for _, message in context.messages]

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        return load_model(self.folder)(IDS).logits


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "source")


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_trainers_folder(source: Path) -> None:
    """What torch.save, TensorFlow and Flax left beside safetensors is neither copied nor opened, and named."""
    for name in ("training_args.bin", "optimizer.pt", "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin"):
        (source / name).write_bytes(b"\x80\x02}.")
        (source / name).chmod(0)
    imported = Imported(source)
    assert imported.events[0] == (
        "left behind unread: flax_model.msgpack, optimizer.pt, pytorch_model.bin, tf_model.h5, training_args.bin"
    )
    assert not [path.name for path in imported.folder.iterdir() if path.suffix not in (".json", ".safetensors")]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack", "modeling.py"])
def test_without_safetensors_pickles_and_code_are_refused(name: str, source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / name).write_bytes(b"\x80\x02}.")
    with pytest.raises(InvalidCheckpoint, match=r"safetensors or GGUF|not accepted") as caught:
        Imported(source)
    assert caught.value.param == name


def test_masks_that_the_architecture_ignores(tmp_path: Path) -> None:
    """GPT-NeoX as published: BOOL and U8 masks, and -inf in float16."""
    model = tiny_family("gpt_neox", num_hidden_layers=2)
    source = save_tiny_checkpoint(tmp_path / "source", model)

    def add_masks(weights: dict[str, torch.Tensor]) -> None:
        for layer in (0, 1):
            name = f"gpt_neox.layers.{layer}.attention"
            weights[f"{name}.bias"] = torch.ones(1, 1, 8, 8, dtype=(torch.bool, torch.uint8)[layer]).tril()
            weights[f"{name}.masked_bias"] = torch.tensor(float("-inf"), dtype=torch.float16)

    edit_weights(source, add_masks)
    imported = Imported(source)
    assert torch.equal(imported.logits(), model(IDS).logits)
    assert not [name for name in load_file(imported.folder / "model.safetensors") if "bias" in name.split(".")[-2:-1]]
    assert imported.events[0].startswith("tensors that the architecture ignores were dropped: gpt_neox.layers.0.att")


def test_a_tensor_that_is_no_mask_keeps_its_refusal(source: Path) -> None:
    edit_weights(source, lambda weights: weights.update({"model.layers.0.extra": torch.ones(3, dtype=torch.bool)}))
    with pytest.raises(InvalidCheckpoint, match=r"model\.layers\.0\.extra as BOOL"):
        Imported(source)


def named_templates(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "template": CHAT_TEMPLATE if name == "default" else "{{ 'tools' }}"} for name in names]


def test_named_chat_templates(source: Path) -> None:
    edit_json(
        source / "tokenizer_config.json", lambda c: c.update(chat_template=named_templates("tool_use", "default"))
    )
    imported = Imported(source)
    tokenizer = load_tokenizer(imported.folder)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (
        tokenizer.decode(encode_chat(tokenizer, [{"role": "user", "content": "hi"}])) == "<bos>[user]hi<eos>[assistant]"
    )
    assert imported.events[0] == "the chat template called default was kept; left behind: tool_use"


@pytest.mark.parametrize(
    ("templates", "reason"), [(named_templates("rag", "tool_use"), "rag, tool_use is called default"), ([1], "neither")]
)
def test_templates_without_a_default(templates: list[Any], reason: str, source: Path) -> None:
    edit_json(source / "tokenizer_config.json", lambda config: config.update(chat_template=templates))
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        Imported(source)
    assert caught.value.param == "tokenizer_config.json"


def test_remote_code_beside_a_native_architecture(source: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (source / "modeling_tiny.py").write_text(code)
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        edit_json(source / name, lambda value, key=key: value.update(auto_map={key: "modeling_tiny.Model"}))
    imported = Imported(source)
    assert imported.events[:2] == [
        "left behind unread: modeling_tiny.py",
        "keys for remote code dropped from config.json, tokenizer_config.json: transformers has the architecture, and "
        "none runs",
    ]
    assert "auto_map" not in (imported.folder / "config.json").read_text()
    assert torch.equal(imported.logits(), tiny_llama()(IDS).logits)
    assert not (tmp_path / "ran").exists()


def test_remote_code_alone_is_refused(source: Path) -> None:
    edit_json(source / "config.json", lambda c: c.update(model_type="tiny", auto_map={"AutoConfig": "tiny.Config"}))
    with pytest.raises(InvalidCheckpoint, match=r"remote code \(auto_map\)"):
        Imported(source)


def test_numbers_as_the_library_reads_them(source: Path) -> None:
    """Python's json writes Infinity (Falcon-H1's time_step_limit); base frequencies and widths are not counts."""
    fields = {"time_step_limit": [0.0, float("inf")], "shared_expert_intermediate_size": 20480, "num_experts": None}
    edit_json(source / "config.json", lambda c: c.update(fields, quantization_config=None, auto_map=None))
    edit_json(source / "config.json", lambda c: c["rope_parameters"].update(rope_theta=100_000_000_000))
    (source / "generation_config.json").write_text('{"eos_token_id": 1, "repetition_penalty": Infinity, "top_p": NaN}')
    imported = Imported(source)
    written = "infinite numbers of config.json, generation_config.json written as transformers writes them"
    assert imported.events[0] == written
    assert json.loads((imported.folder / "generation_config.json").read_text()) == {"eos_token_id": 1}
    config = AutoModelForCausalLM.from_pretrained(imported.folder).config
    assert config.time_step_limit == [0.0, float("inf")]
    assert config.rope_parameters["rope_theta"] == 1e11
    assert json.loads((imported.folder / "config.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("field", "value"), [("num_local_experts", 5000), ("n_routed_experts", 5000), ("hidden_size", 1 << 40)]
)
def test_absurd_counts_stay_refused(field: str, value: int, source: Path) -> None:
    edit_json(source / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(InvalidCheckpoint, match=f"{field} = {value} is out of range"):
        Imported(source)


def test_a_head_that_contradicts_its_config(source: Path, tmp_path: Path) -> None:
    """tie_word_embeddings is true, and another head is stored: stock transformers uses the head; so does an export."""
    edit_weights(source, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].flip(0).clone()}))
    stock = AutoModelForCausalLM.from_pretrained(source)
    imported = Imported(source)
    expected = stock(IDS).logits
    assert torch.equal(imported.logits(), expected)
    assert not torch.equal(expected, tiny_llama()(IDS).logits)
    assert imported.events[0].startswith("tie_word_embeddings set to false: the stored lm_head.weight differs")
    write_safe_checkpoint(imported.folder, Edits(), tmp_path / "export")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "export")(IDS).logits, expected)


def test_added_tokens_past_the_vocabulary(tmp_path: Path) -> None:
    """As Gemma 3's <image_soft_token>, 262144 of 262144, and Llama 2 with a pad token."""
    source = save_tiny_checkpoint(tmp_path / "source")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<late pad>"})
    tokenizer.add_tokens(["<image>"])
    assert len(tokenizer) == 261
    tokenizer.save_pretrained(source)
    imported = Imported(source)
    assert imported.events[0] == "tokens past the model's vocabulary dropped: <image>, <late pad>"
    loaded = load_tokenizer(imported.folder)
    assert vocabulary_size(loaded, load_model(imported.folder)) == 259
    for text in ("an <image> here", "<late pad>"):
        ids = encode_text(loaded, text)
        assert max(ids) < 259
        assert loaded.decode(ids) == text
    assert AutoTokenizer.from_pretrained(imported.folder).pad_token is None


def test_a_tokenizer_class_that_adds_a_special_token(tmp_path: Path) -> None:
    """Qwen2's class adds <|endoftext|> to any vocabulary; no text encodes to it."""
    imported = Imported(save_tiny_checkpoint(tmp_path / "source", tiny_family("qwen2")))
    tokenizer = load_tokenizer(imported.folder)
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 259
    assert vocabulary_size(tokenizer, load_model(imported.folder)) == 259
    assert max(encode_text(tokenizer, "<|endoftext|>")) < 259


def test_words_of_the_vocabulary_past_the_logits_stay_refused(tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "source", tiny_llama(vocab_size=200))
    byte_tokenizer().save_pretrained(source)
    with pytest.raises(InvalidCheckpoint, match="the tokenizer has id 258, the model has 200 ids"):
        Imported(source)


def test_a_vocabulary_with_holes(tmp_path: Path) -> None:
    """The bound is the largest id + 1, not the number of tokens."""
    source = save_tiny_checkpoint(tmp_path / "source", tiny_llama(vocab_size=300))

    def move_up(pipeline: dict[str, Any]) -> None:
        pipeline["model"]["vocab"]["a"] = 290

    edit_json(source / "tokenizer.json", move_up)
    imported = Imported(source)
    tokenizer = load_tokenizer(imported.folder)
    assert encode_text(tokenizer, "a") == [290]
    assert len(tokenizer) == 259
    assert vocabulary_size(tokenizer, load_model(imported.folder)) == 291
