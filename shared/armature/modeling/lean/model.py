"""The forward pass of the Llama family over safe and ARM rows, on the weights of a loaded transformers model.

Late split: layers below the first adapted one are the same for both streams of a request. They run on the safe rows
alone, and the ARM rows branch off from them; with an adapter in the upper half, half of the twin's cost is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PretrainedConfig, PreTrainedModel

from armature.errors import InvalidCheckpoint
from armature.modeling.kv_memory import KvMemory
from armature.modeling.lean.architecture import Architecture, refusal
from armature.modeling.lean.kv_cache import Attend, KvCache, attention_dtype
from armature.modeling.lean.layer import Cores, LeanLayer, RotaryPositions, Rotation
from armature.modeling.lean.linears import blocks_weights, make_linear


@dataclass(frozen=True)
class Streams:
    """The ARM rows of a forward pass: the safe rows that they branch from (a,), and their cores by layer, if any."""

    parents: Tensor
    cores: list[Cores] | None

    @classmethod
    def of(cls, model: LeanModel, parents: Sequence[int], mixed: Sequence[Tensor | None]) -> Streams:
        """From each ARM row's parent and the :meth:`LeanModel.mix` (C,) of its preference."""
        stacked = [cores for cores in mixed if cores is not None]
        where = torch.tensor(parents, dtype=torch.long, device=model.device)
        return cls(where, model.cores(torch.stack(stacked)) if stacked else None)

    def branch(self, trunk: Tensor, rotation: Rotation) -> tuple[Tensor, Rotation]:
        """The safe rows (s, T, hidden) at the split, and after them the ARM rows that branch off; their rotation."""
        if self.cores is None:
            return trunk, rotation
        return torch.cat([trunk, trunk[self.parents]]), rotation.extend(self.parents)


class LeanModel:
    """A model of the Llama family, with or without a PBLoRA adapter, for inference only.

    Takes the projections out of ``model``, layer by layer, so that there is never a second copy of them; ``model`` can
    not run afterwards. Embeddings and norms are shared. A head that is tied to the embeddings is stored once more where
    products want a layout of their own.

    Raises:
        InvalidCheckpoint: Not an architecture of this back end; ``supports`` tells beforehand.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if field := refusal(model):
            raise InvalidCheckpoint(f"the lean back end does not run this model's {field}", param="config.json")
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        decoder = base.model
        self._config = base.config
        self._architecture = Architecture.of(base.config)
        self._embeddings: Tensor = decoder.embed_tokens.weight.data
        self._layers = [LeanLayer(module, self._architecture) for module in decoder.layers]
        self._norm: Tensor = decoder.norm.weight.data
        self._head = make_linear(base.lm_head.weight.data)
        if base.lm_head.weight is not decoder.embed_tokens.weight:
            base.lm_head.weight = nn.Parameter(self._norm.new_empty(0), requires_grad=False)
        self._rotary = RotaryPositions(decoder.rotary_emb, attention_dtype(self.device, self.dtype))
        adapted = [any(p.adapted for p in layer.projections) for layer in self._layers]
        self.split = adapted.index(True) if any(adapted) else len(adapted)
        """The first layer whose ARM rows differ from the safe ones."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._embeddings.dtype

    @property
    def kv_memory(self) -> KvMemory:
        """What its caches take."""
        return KvMemory.of(self._config, attention_dtype(self.device, self.dtype).itemsize, self.split)

    @property
    def core_numbers(self) -> int:
        """C, how many numbers a preference's cores have in all layers together."""
        return sum(projection.core_width**2 for layer in self._layers for projection in layer.projections)

    def new_caches(self) -> tuple[KvCache, KvCache]:
        """Empty caches for the layers below the split, which safe rows alone pass, and for those above."""
        above = len(self._layers) - self.split
        return (
            KvCache(self._architecture, 0, self.split, self._embeddings),
            KvCache(self._architecture, self.split, above, self._embeddings),
        )

    def new_hidden(self, rows: int, length: int) -> Tensor:
        """Room for hidden states (rows, length, hidden)."""
        return self._embeddings.new_zeros(rows, length, self._embeddings.shape[1])

    @torch.inference_mode()
    def mix(self, preferences: Tensor) -> Tensor:
        """What each preference (n, K) makes of the adapter: all its cores, side by side, (n, C) in fp32."""
        parts = [projection.mix(preferences).flatten(1) for layer in self._layers for projection in layer.projections]
        return torch.cat(parts, dim=1)

    def cores(self, mixed: Tensor) -> list[Cores]:
        """Views of :meth:`mix`'s result (a, C), by layer."""
        widths = [projection.core_width for layer in self._layers for projection in layer.projections]
        parts = torch.split(mixed, [width * width for width in widths], dim=1)
        views = [part.view(-1, width, width) if width else None for part, width in zip(parts, widths, strict=True)]
        return [Cores(*views[begin : begin + len(Cores._fields)]) for begin in range(0, len(views), len(Cores._fields))]

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, streams: Streams, attend: tuple[Attend, Attend]) -> Tensor:
        """Hidden states of all rows: (s, T) tokens of the safe rows -> (s + a, T, hidden).

        Args:
            tokens: Of the safe rows; ARM rows see the same.
            positions: Their positions, (s, T), or (1, T) where all rows have the same.
            streams: The ARM rows.
            attend: The attention below the split and above it.
        """
        rotation = self.rotation(positions)
        trunk = self.lower(tokens, rotation, attend[0])
        return self.upper(*streams.branch(trunk, rotation), streams.cores, attend[1])

    @torch.inference_mode()
    def rotation(self, positions: Tensor) -> Rotation:
        """Of queries and keys at these positions (rows, T)."""
        return self._rotary.at(positions)

    @torch.inference_mode()
    def lower(self, tokens: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """The layers below the split, which know no preference: (s, T) tokens -> (s, T, hidden)."""
        x = self._embeddings[tokens]
        for number, layer in enumerate(self._layers[: self.split]):
            x = layer.forward(number, x, rotation, attend, Cores())
        return x

    @torch.inference_mode()
    def upper(self, x: Tensor, rotation: Rotation, cores: list[Cores] | None, attend: Attend) -> Tensor:
        """The layers above it: (rows, T, hidden) -> the same. The last rows are those of the ``cores``, if any."""
        for number, layer in enumerate(self._layers[self.split :], self.split):
            x = layer.forward(number, x, rotation, attend, cores[number] if cores else Cores())
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) -> (rows, V)."""
        return self._head(rms_norm(hidden, hidden.shape[-1:], self._norm, self._architecture.eps))


def stores_tied_head_twice(config: PretrainedConfig, device: str) -> bool:
    """Whether a head that is tied to the embeddings is held in a second layout."""
    return bool(config.tie_word_embeddings) and blocks_weights(torch.device(device))
