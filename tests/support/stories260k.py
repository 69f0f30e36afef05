"""The real pretrained stories260K (llama2.c's format) as a Hugging Face folder."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPACE = "▁"
FIRST_PIECE = 259  # 0 to 2 are special, 3 to 258 are bytes


def convert(folder_in: Path, folder_out: Path) -> Path:
    """Write ``folder_out`` with config, safetensors and ``tokenizer.json``, ready to be imported; returns it."""
    model, tokenizer = load_model(folder_in), load_tokenizer(folder_in)
    model.save_pretrained(folder_out)
    tokenizer.save_pretrained(folder_out)
    return folder_out


def load_model(folder: Path) -> LlamaForCausalLM:
    raw = (folder / "checkpoint_legacy.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[:28])
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    values = torch.from_numpy(np.frombuffer(raw, np.float32, offset=28).copy())
    position = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        count = int(np.prod(shape))
        position += count
        return values[position - count : position].view(*shape)

    head, kv_dim = dim // heads, kv_heads * (dim // heads)
    embedding, attention_norms = take(vocab, dim), take(layers, dim)
    queries, keys, values_, outputs = (take(layers, rows, dim) for rows in (dim, kv_dim, kv_dim, dim))
    mlp_norms, gates = take(layers, dim), take(layers, hidden, dim)
    downs, ups = take(layers, dim, hidden), take(layers, hidden, dim)
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": take(dim), "lm_head.weight": embedding}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        state |= {
            f"{prefix}.input_layernorm.weight": attention_norms[layer],
            f"{prefix}.self_attn.q_proj.weight": half_rotary(queries[layer], heads, head),
            f"{prefix}.self_attn.k_proj.weight": half_rotary(keys[layer], kv_heads, head),
            f"{prefix}.self_attn.v_proj.weight": values_[layer],
            f"{prefix}.self_attn.o_proj.weight": outputs[layer],
            f"{prefix}.post_attention_layernorm.weight": mlp_norms[layer],
            f"{prefix}.mlp.gate_proj.weight": gates[layer],
            f"{prefix}.mlp.down_proj.weight": downs[layer],
            f"{prefix}.mlp.up_proj.weight": ups[layer],
        }
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def half_rotary(weight: torch.Tensor, heads: int, head: int) -> torch.Tensor:
    """From llama2.c's interleaved rotary pairs to the two halves that transformers rotates."""
    return weight.view(heads, head // 2, 2, -1).transpose(1, 2).reshape(heads * head, -1)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE. The file lists a score and a piece per id; merges follow from the pieces, best first."""
    raw = (folder / "tokenizer.bin").read_bytes()
    pieces, position = [], 4
    while position < len(raw):
        _, length = struct.unpack("<fi", raw[position : position + 8])
        pieces.append(raw[position + 8 : position + 8 + length].decode())
        position += 8 + length
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [piece.replace(" ", SPACE) for piece in pieces[FIRST_PIECE:]]
    vocab = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(BPE(vocab=vocab, merges=_merges(vocab), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to build a piece from two others, in the order of the piece's rank."""
    return [
        (piece[:cut], piece[cut:])
        for piece in list(vocab)[FIRST_PIECE:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
