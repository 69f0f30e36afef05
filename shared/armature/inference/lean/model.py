"""Llama-family forward pass over trunk and branch rows: one base's dense weights under one adapter.

Late split: layers below the first adapted one are the same for a stream with the adapter on and its parent. They run on
the trunk rows alone, and branch rows continue from there; with an adapter in the upper half, half of the cost of the
second stream is gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from armature.inference.kv_memory import KvMemory
from armature.inference.lean.kv_cache import Attend, KvCache
from armature.inference.lean.layer import Cores, LeanLayer, Rotation
from armature.inference.lean.weights import LeanWeights, plain


@dataclass(frozen=True)
class Branches:
    """A forward pass's branch rows: the trunk rows that they continue (a,), and cores by layer, if any."""

    parents: Tensor
    cores: list[Cores] | None

    @classmethod
    def of(cls, model: LeanModel, parents: Sequence[int], cores: Sequence[Tensor]) -> Branches:
        """Stack each branch row's parent and the :meth:`LeanModel.core_vector` (C,) of its preference."""
        where = torch.tensor(parents, dtype=torch.long, device=model.device)
        return cls(where, model.cores(torch.stack(list(cores))) if cores else None)

    def append(self, trunk: Tensor, rotation: Rotation) -> tuple[Tensor, Rotation]:
        """The trunk rows (s, T, hidden) at the split, and after them the rows that branch off; their rotation."""
        if self.cores is None:
            return trunk, rotation
        return torch.cat([trunk, trunk[self.parents]]), rotation.extend(self.parents)


class LeanModel:
    """A model of the Llama family, with or without an adapter, for inference only.

    Args:
        model: The module tree with the adapter, if there is one. It can not run afterwards.
        weights: Its dense weights; None: they are taken out of ``model``.

    Raises:
        InvalidCheckpoint: The architecture is not supported; ``supports`` tells beforehand.
    """

    def __init__(self, model: PreTrainedModel, weights: LeanWeights | None = None) -> None:
        self.weights = weights or LeanWeights(model)
        """The dense weights, shared with any number of other models."""
        modules, architecture = plain(model).model.layers, self.weights.architecture
        self._layers = [
            LeanLayer(layer, module, architecture) for layer, module in zip(self.weights.layers, modules, strict=True)
        ]
        adapted = [any(p.adapted for p in layer.projections) for layer in self._layers]
        self.split = adapted.index(True) if any(adapted) else len(adapted)
        """The first layer with an adapter, where branch rows begin."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.weights.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.weights.embeddings.dtype

    @property
    def kv_memory(self) -> KvMemory:
        """The key-value memory of its caches."""
        return KvMemory.of(self.weights.config, self.dtype.itemsize, self.split)

    @property
    def core_numbers(self) -> int:
        """C, the numbers of a preference's cores in all layers together."""
        return sum(math.prod(projection.core_shape) for layer in self._layers for projection in layer.projections)

    def new_caches(self) -> tuple[KvCache, KvCache]:
        """Make empty caches for the layers below the split, which trunk rows alone pass, and for those above."""
        above = len(self._layers) - self.split
        return (
            KvCache(self.weights.architecture, 0, self.split, self.weights.embeddings),
            KvCache(self.weights.architecture, self.split, above, self.weights.embeddings),
        )

    def new_hidden(self, rows: int, length: int) -> Tensor:
        """Make room for hidden states (rows, length, hidden)."""
        return self.weights.embeddings.new_zeros(rows, length, self.weights.embeddings.shape[1])

    @torch.inference_mode()
    def core_vector(self, preferences: Tensor) -> Tensor:
        """Compute the adapter's cores under each preference (n, K), all side by side, (n, C) in fp32."""
        parts = [projection.core(preferences).flatten(1) for layer in self._layers for projection in layer.projections]
        return torch.cat(parts, dim=1)

    def cores(self, vectors: Tensor) -> list[Cores]:
        """Return views of the results of :meth:`core_vector` (a, C), by layer."""
        shapes = [projection.core_shape for layer in self._layers for projection in layer.projections]
        parts = torch.split(vectors, [math.prod(shape) for shape in shapes], dim=1)
        views = [part.view(-1, *shape) if all(shape) else None for part, shape in zip(parts, shapes, strict=True)]
        return [Cores(*views[begin : begin + len(Cores._fields)]) for begin in range(0, len(views), len(Cores._fields))]

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, branches: Branches, attend: tuple[Attend, Attend]) -> Tensor:
        """Compute hidden states of all rows: (s, T) tokens of the trunk rows -> (s + a, T, hidden).

        Args:
            tokens: Of the trunk rows; branch rows are fed their parents'.
            positions: Their positions, (s, T), or (1, T) where all rows have the same.
            branches: The branch rows.
            attend: The attention below the split and above it.
        """
        rotation = self.rotation(positions)
        trunk = self.lower(tokens, rotation, attend[0])
        return self.upper(*branches.append(trunk, rotation), branches.cores, attend[1])

    @torch.inference_mode()
    def rotation(self, positions: Tensor) -> Rotation:
        """Return the rotation of queries and keys at these positions (rows, T)."""
        return self.weights.rotary.at(positions)

    @torch.inference_mode()
    def lower(self, tokens: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Compute the layers below the split, without adapters: (s, T) tokens -> (s, T, hidden)."""
        x = self.weights.embeddings[tokens]
        for number, layer in enumerate(self._layers[: self.split]):
            x = layer.forward(number, x, rotation, attend, Cores())
        return x

    @torch.inference_mode()
    def upper(self, x: Tensor, rotation: Rotation, cores: list[Cores] | None, attend: Attend) -> Tensor:
        """Compute layers above the split: (rows, T, hidden) -> the same; ``cores``, if any, of the last rows."""
        for number, layer in enumerate(self._layers[self.split :], self.split):
            x = layer.forward(number, x, rotation, attend, cores[number] if cores else Cores())
        return x

    @torch.inference_mode()
    def normed(self, hidden: Tensor) -> Tensor:
        """Normalise for the head, (rows, hidden) -> the same; in float32 on a CPU."""
        return self.weights.norm(hidden)

    @torch.inference_mode()
    def read(self, normed: Tensor) -> Tensor:
        """Compute logits: (rows, hidden) -> (rows, V)."""
        return self.weights.head(normed.to(self.dtype))
