"""Logits at selected positions, and rows in which several answers share their prompt.

A causal language model applies its head at every position of every row, and its layers to the prompt of every answer. A
loss on answers needs neither: the positions that predict an answer's tokens are known beforehand, and answers that do
not attend to each other can follow one prompt in one row::

    ids        prompt | first answer | second answer
    position   0 .. P-1 | P .. | P ..                   each answer starts right after the prompt
    attends to the prompt | prompt, itself | prompt, itself
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

PROMPT_SHARING = frozenset({"gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"})
"""Model types that accept a 4D attention mask and explicit positions, each verified by a test."""

_MASKING_ATTENTION = ("eager", "sdpa")


def can_share_prompts(config: PretrainedConfig, tokens: int) -> bool:
    """Tell whether rows of up to ``tokens`` tokens can hold several answers, with the same results.

    Models with a sliding window drop their own mask when they are given one, so their rows must fit into the window.
    """
    window = getattr(config, "sliding_window", None)
    known = config.model_type in PROMPT_SHARING and config._attn_implementation in _MASKING_ATTENTION
    return known and (window is None or tokens <= window)


def sharing_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Build the additive mask (rows, 1, T, T) by which an answer attends to the prompt and itself.

    Args:
        segments: (rows, T): 0 for the prompt, another number for each answer, and one more for padding on the right.
        dtype: The model's dtype.
    """
    earlier = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    queries, keys = segments[:, :, None], segments[:, None, :]
    visible = earlier & ((keys == 0) | (keys == queries))
    hidden = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@contextmanager
def logits_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Make ``model`` compute logits at ``positions`` only: (1, M, V) instead of (rows, T, V).

    transformers' ``logits_to_keep`` can do so only for positions that all rows share.

    Args:
        model: Any causal language model.
        positions: (M,), indices into the flattened rows, ``row * T + column``; may repeat.
    """

    def select(head: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        hidden: Tensor = inputs[0]
        return hidden.flatten(0, 1).index_select(0, positions)[None]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
