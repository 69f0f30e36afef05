"""The dense weights of the lean runner: taken from a loaded model once, shared by every adapter on it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from armature.errors import InvalidCheckpoint
from armature.inference.lean.architecture import Architecture, refusal
from armature.inference.lean.attention import attention_dtype
from armature.inference.lean.layer import LayerWeights, RotaryPositions
from armature.inference.lean.linears import blocks_weights, make_linear
from armature.inference.lean.norms import take_norm


class LeanWeights:
    """Embeddings, layers, norms and head of a model of the Llama family. They never change.

    Projections and norms are moved out of ``model`` layer by layer, so that there is never a second copy of them. The
    module tree remains as a map of the modules and can not run afterwards. Embeddings are shared with it. A head that
    is tied to the embeddings is stored a second time where products need a layout of their own.

    Raises:
        InvalidCheckpoint: The architecture is not supported; ``supports`` tells beforehand.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if field := refusal(model):
            raise InvalidCheckpoint(f"the lean back end does not run this model's {field}", param="config.json")
        whole = plain(model)
        decoder = whole.model
        self.config: PretrainedConfig = whole.config
        self.architecture = Architecture.of(whole.config)
        self.embeddings: Tensor = decoder.embed_tokens.weight.data
        self.layers = [LayerWeights.take(module, self.architecture) for module in decoder.layers]
        self.norm = take_norm(decoder.norm, self.architecture.eps)
        self.head = make_linear(whole.lm_head.weight.data)
        if whole.lm_head.weight is not decoder.embed_tokens.weight:
            whole.lm_head.weight = nn.Parameter(self.embeddings.new_empty(0), requires_grad=False)
        dtype = attention_dtype(self.embeddings.device, self.embeddings.dtype)
        self.rotary = RotaryPositions.of(decoder.rotary_emb, whole.config.max_position_embeddings, dtype)

    def in_float32(self) -> LeanWeights:
        """Return a view for self-tests: its models compute in float32, on the same numbers.

        Products widen their weights at each call, so that it takes the memory of the largest one, and of embeddings.
        """
        view = copy.copy(self)
        view.embeddings, view.head = self.embeddings.float(), self.head.in_float32()
        view.layers = [layer.in_float32() for layer in self.layers]
        view.rotary = replace(self.rotary, dtype=torch.float32)
        return view


def plain(model: PreTrainedModel) -> Any:
    """Return the transformers model, also from below an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def rotation_bytes(config: PretrainedConfig) -> int:
    """Count the bytes of the tables of rotations: cosines and sines of half a head at each position."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.max_position_embeddings * width * torch.float32.itemsize)


def stores_tied_head_twice(config: PretrainedConfig, device: str) -> bool:
    """Tell whether a head that is tied to the embeddings is stored in a second layout."""
    return bool(config.tie_word_embeddings) and blocks_weights(torch.device(device))
