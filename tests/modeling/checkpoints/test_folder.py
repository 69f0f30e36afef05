"""Model folders: refusals, the digests' dependencies, and writing."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from armature.errors import InvalidCheckpoint, TokenizerMismatch
from armature.modeling.checkpoints.folder import (
    describe_checkpoint,
    digest_tokenizer,
    open_checkpoint,
    write_checkpoint,
)
from armature.modeling.layers import decoder_linears
from armature.modeling.tokenization.vocabularies import digest_tokens, require_same_tokens
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, save_tiny_checkpoint, swapped_tokenizer, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_digests_do_not_depend_on_sharding(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    whole = describe_checkpoint(open_checkpoint(folder), tokenizer)
    shard(folder)
    assert describe_checkpoint(open_checkpoint(folder), tokenizer) == whole
    assert whole.parameters == sum(p.numel() for p in tiny_llama().parameters())
    assert (whole.architecture, whole.dtype, whole.vocab_size) == ("LlamaForCausalLM", "float32", 259)
    assert (whole.context_length, whole.chat_template) == (256, False)


def test_model_digest_sees_one_weight_the_config_and_the_tokenizer(folder: Path) -> None:
    def describe() -> Any:
        return describe_checkpoint(open_checkpoint(folder), byte_tokenizer())

    original = describe()
    edit_config(folder, transformers_version="0.0.1")
    assert describe() == original
    edit_config(folder, rms_norm_eps=1e-5)
    assert describe().model_digest != original.model_digest
    edit_config(folder, rms_norm_eps=1e-6)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, folder / "model.safetensors")
    assert describe().weights_digest != original.weights_digest
    assert describe().tokenizer_digest == original.tokenizer_digest


@pytest.mark.bad_input(28)
def test_tokenizer_digest_covers_tokens_and_ids_not_the_template() -> None:
    plain = digest_tokenizer(byte_tokenizer())
    assert digest_tokenizer(byte_tokenizer(CHAT_TEMPLATE)) == plain
    added = byte_tokenizer()
    added.add_tokens(["extra"])
    permuted = byte_tokenizer()
    state = json.loads(permuted.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    permuted.backend_tokenizer.model = type(permuted.backend_tokenizer.model)(vocab=vocab, merges=[])
    assert len({plain, digest_tokenizer(added), digest_tokenizer(permuted)}) == 3


def test_tokens_that_one_side_lacks_are_no_contradiction() -> None:
    """As in ArmoRM, whose tokenizer is Llama 3's with a pad token more."""
    plain, padded = byte_tokenizer(), byte_tokenizer(CHAT_TEMPLATE)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    for one, other in ((plain, padded), (padded, plain)):
        assert digest_tokens(one) == digest_tokens(other)
        require_same_tokens(one, other, "spec")


def test_a_token_with_two_ids_or_an_id_with_two_tokens_is_a_contradiction() -> None:
    plain, ends_elsewhere, first, second = (byte_tokenizer() for _ in range(4))
    ends_elsewhere.eos_token = "a"
    first.add_tokens(["one"])
    second.add_tokens(["two"])
    for one, other in ((plain, ends_elsewhere), (plain, swapped_tokenizer()), (first, second)):
        with pytest.raises(TokenizerMismatch):
            require_same_tokens(one, other, "spec")
    assert len({digest_tokens(one) for one in (plain, ends_elsewhere, swapped_tokenizer())}) == 3


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


BREAKS: dict[str, Callable[[Path], Any]] = {
    "pickle named safetensors": lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95\x00\x00\x00"),
    "zip named safetensors": lambda f: (f / "model.safetensors").write_bytes(zip_bytes()),
    "pickle named json": lambda f: (f / "special_tokens_map.json").write_bytes(b"\x80\x02}q\x00."),
    "old text pickle": lambda f: (f / "pytorch_model.bin").write_bytes(b"(dp0\n."),
    "code": lambda f: (f / "modeling_tiny.py").write_text("print('hello')"),
    "auto_map": lambda f: edit_config(f, auto_map={"AutoModelForCausalLM": "modeling_tiny.Model"}),
    "nested auto_map": lambda f: edit_config(f, text_config={"auto_map": {}}),
    "custom code": lambda f: edit_config(f, custom_code=True),
    "tokenizer auto_map": lambda f: (f / "tokenizer_config.json").write_text('{"auto_map": {}}'),
    "unknown architecture": lambda f: edit_config(f, architectures=["EvilForCausalLM"]),
    "unknown model type": lambda f: edit_config(f, model_type="evil"),
    "not a causal model": lambda f: edit_config(f, model_type="bert", architectures=["BertForMaskedLM"]),
    "model type of another type": lambda f: edit_config(f, model_type=["llama"]),
    "quantised": lambda f: edit_config(f, quantization_config={"bits": 4}),
    "huge hidden size": lambda f: edit_config(f, hidden_size=10**9),
    "too large hidden size": lambda f: edit_config(f, hidden_size=1 << 16),
    "no vocabulary": lambda f: edit_config(f, vocab_size=0),
    "negative layers": lambda f: edit_config(f, num_hidden_layers=-1),
    "more layers than stored": lambda f: edit_config(f, num_hidden_layers=40),
    "million layers": lambda f: edit_config(f, num_hidden_layers=10**6),
    "size as text": lambda f: edit_config(f, hidden_size="32"),
    "no config": lambda f: (f / "config.json").unlink(),
    "config is a list": lambda f: (f / "config.json").write_text("[]"),
    "config is not JSON": lambda f: (f / "config.json").write_text("{"),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "truncated weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
    "index outside": lambda f: (f / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../model.safetensors"}})
    ),
    "index names other tensors": lambda f: (f / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors"}})
    ),
    "index without a map": lambda f: (f / "model.safetensors.index.json").write_text("{}"),
}


def edit_header(folder: Path, **changes: Any) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length]) | changes).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])


def write_generation(text: str | bytes) -> Callable[[Path], Any]:
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "generation_config.json").write_bytes(raw)


NAMED_BREAKS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "infinity": (lambda f: edit_config(f, rope_theta=float("inf")), "config.json", "rope_theta.*finite"),
    "lone surrogate": (lambda f: edit_config(f, note="\ud800"), "config.json", "note.*surrogate"),
    "surrogate key": (lambda f: edit_config(f, **{"\ud800": 1}), "config.json", "surrogate"),
    "context of one": (lambda f: edit_config(f, max_position_embeddings=1), "config.json", "max_position_embeddings"),
    "vast context": (lambda f: edit_config(f, max_position_embeddings=1 << 26), "config.json", "max_position"),
    "end outside": (lambda f: edit_config(f, eos_token_id=259), "config.json", "eos_token_id"),
    "metadata of numbers": (lambda f: edit_header(f, __metadata__={"a": 1}), "model.safetensors", "__metadata__"),
    "metadata as list": (lambda f: edit_header(f, __metadata__=[]), "model.safetensors", "__metadata__"),
    "length as text": (
        lambda f: (f / "tokenizer_config.json").write_text('{"model_max_length": "x"}'),
        "tokenizer_config.json",
        "model_max_length",
    ),
    **{
        f"generation_config {text!r}": (write_generation(text), "generation_config.json", reason)
        for text, reason in [
            ("{", "not valid JSON"),
            (b'{"a": "\xff"}', "UTF-8"),
            ("[]", "not a JSON object"),
            ('{"temperature": NaN}', "temperature"),
            ('{"eos_token_id": "x"}', "eos_token_id"),
            ('{"eos_token_id": 259}', "eos_token_id"),
            ('{"eos_token_id": -1}', "eos_token_id"),
            ('{"eos_token_id": true}', "eos_token_id"),
            ('{"eos_token_id": [1, [2]]}', "eos_token_id"),
            ('{"eos_token_id": {"a": 1}}', "eos_token_id"),
            ('{"pad_token_id": [1]}', "pad_token_id"),
            ('{"bos_token_id": 1.5}', "bos_token_id"),
        ]
    },
}


@pytest.mark.parametrize("case", sorted(NAMED_BREAKS))
def test_refuses_by_name(case: str, folder: Path) -> None:
    change, param, reason = NAMED_BREAKS[case]
    change(folder)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        open_checkpoint(folder)
    assert caught.value.param == param


@pytest.mark.parametrize("length", [int(1e30), 1e30, 512, None])
def test_usual_tokenizer_lengths_are_fine(length: float | None, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    open_checkpoint(folder)


@pytest.mark.bad_input(38, 40)
@pytest.mark.parametrize("case", sorted(BREAKS))
def test_files_that_are_no_model_are_refused(case: str, folder: Path) -> None:
    BREAKS[case](folder)
    with pytest.raises(InvalidCheckpoint) as caught:
        open_checkpoint(folder)
    assert caught.value.param in {path.name for path in folder.iterdir()} | {"config.json", "model.safetensors"}


def test_header_lengths_that_spell_a_pickle_are_fine(folder: Path) -> None:
    """A header of 640 bytes begins with the two bytes of a protocol 2 pickle."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    padded = ((length + 0xFFFF) & ~0xFFFF) | 0x0280
    header = raw[8 : 8 + length].ljust(padded)
    (folder / "model.safetensors").write_bytes(padded.to_bytes(8, "little") + header + raw[8 + length :])
    assert (folder / "model.safetensors").read_bytes()[:2] == b"\x80\x02"
    open_checkpoint(folder)


def test_written_shards_load_in_stock_transformers_with_tied_tensors_once(tmp_path: Path) -> None:
    model = tiny_llama(3)
    write_checkpoint(model, byte_tokenizer(), tmp_path / "out", shard_bytes=20_000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    names = [name for path in shards for name in load_file(path)]
    assert len(names) == len(set(names))
    assert "lm_head.weight" not in names
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    describe_checkpoint(open_checkpoint(tmp_path / "out"), byte_tokenizer())


def test_a_torn_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tiny_llama(), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_decoder_linears_are_attention_and_mlp_only() -> None:
    names = decoder_linears(tiny_llama(layers=3))
    assert len(names) == 3 * 7
    assert not [name for name in names if "norm" in name or "embed" in name or "head" in name]


def test_decoder_linears_of_another_family() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    assert sorted(decoder_linears(model)) == sorted(
        f"transformer.h.{layer}.{part}"
        for layer in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )
