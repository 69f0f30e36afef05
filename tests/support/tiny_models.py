"""Tiny random models, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

EOS, PAD, BOS = "<eos>", "<pad>", "<bos>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tiny_llama(seed: int = 0, *, vocab_size: int = 259, layers: int = 2, tied: bool = True) -> LlamaForCausalLM:
    """A random Llama of a few thousand parameters with grouped-query attention, in evaluation mode."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_family(name: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random model of another family, four layers, with that family's own features and ``settings`` on top.

    Norms and biases are random too: at their defaults, code that forgets them would pass.
    """
    config = AutoConfig.for_model(
        name,
        **{
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            **settings,
        },
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in key else 0.0, 0.2)
    return model


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte: ids 0 bos, 1 eos, 2 pad, then the 256 bytes; decoding gives back any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([BOS, EOS, PAD, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=chat_template
    )


def swapped_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer, of the same size, with the ids of ``a`` and ``b`` swapped."""
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    swapped = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=swapped, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def save_tiny_checkpoint(folder: Path, model: PreTrainedModel | None = None, chat_template: str | None = None) -> Path:
    """Write a tiny model and the byte tokenizer the way a user's folder looks."""
    (model or tiny_llama()).save_pretrained(folder)
    byte_tokenizer(chat_template).save_pretrained(folder)
    return folder
