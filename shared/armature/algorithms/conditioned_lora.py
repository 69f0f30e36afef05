"""Low-rank adapters whose core depends on a preference: what every kind of them shares.

For a frozen linear layer ``y = W0 x`` with K attributes and a preference p on their simplex::

    y = W0 x + s B (core(p) A x + shift(p))                           rank <= R

A kind is a :class:`ConditionedShape`: how W1, which is blind to p, and W2, a row for each attribute, make core and
shift, both affine in p. :mod:`armature.algorithms.pblora` and :mod:`armature.algorithms.modulated_lora` have them.

Symbols: ``in``, ``out`` the layer's sizes; r1 the shared rank, r2 the conditioned rank, R = r1 + r2; s the scale; K
attributes; ``rows`` the sequences of a batch, T their tokens.

What differs from the papers' code: no matrix of the layer's size is formed while running. ``x`` goes through A, a core
of its own row, and B, so a batch may hold as many preferences as rows and the cost is that of a LoRA of rank R.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class AdapterWeights(NamedTuple):
    """The four tensors of one adapted layer (or their gradients, with leading dimensions of their own)."""

    a: Tensor
    """A: (R, in)"""
    b: Tensor
    """B: (out, R)"""
    w1: Tensor
    """W1: (..., r), blind to the preference; r: how many of A's rows and B's columns are blind to it too"""
    w2: Tensor
    """W2: (K, numbers), a row for each attribute"""


class Core(NamedTuple):
    """What stands between A and B, for each row of a batch (or its gradient)."""

    matrix: Tensor
    """(rows, R, R)"""
    shift: Tensor | None
    """(rows, R); None: a kind without one."""


@dataclass(frozen=True)
class ConditionedShape(ABC):
    """A kind of adapter and how large it is."""

    shifts: ClassVar[bool] = False
    """Whether its cores have a shift."""
    rank_shared: int
    """r1"""
    rank_conditioned: int
    """r2"""
    attributes: int
    """K"""
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return self.rank_shared + self.rank_conditioned

    @property
    @abstractmethod
    def scale(self) -> float:
        """s."""

    @abstractmethod
    def core_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of W1 and W2."""

    @abstractmethod
    def initial_core(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Fresh W1 and W2, float32."""

    @abstractmethod
    def core(self, w1: Tensor, w2: Tensor, preferences: Tensor) -> Core:
        """Core and shift under each preference (rows, K)."""

    @abstractmethod
    def core_gradients(self, gradient: Core, preferences: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of W1 and W2 for each objective, (objectives, ...), from those of every row's core.

        Args:
            gradient: At core and shift of every row.
            preferences: (rows, K).
            row_weights: How much each row counts for each objective, (rows, objectives).
        """

    def tensor_shapes(self, in_features: int, out_features: int) -> tuple[tuple[int, int], ...]:
        """Of A, B, W1 and W2 on a layer of these sizes."""
        return ((self.rank, in_features), (out_features, self.rank), *self.core_shapes())

    def initialise(self, in_features: int, out_features: int, device: torch.device | None = None) -> AdapterWeights:
        """Fresh float32 tensors: A as in torch's linear layers, B = 0, so that the adapter does nothing.

        Draws from torch's global generator, as every torch layer does.
        """
        a = uniform(self.rank, in_features, device)
        b = torch.zeros(out_features, self.rank, dtype=torch.float32, device=device)
        return AdapterWeights(a, b, *self.initial_core(device))


def uniform(rows: int, fan_in: int, device: torch.device | None = None) -> Tensor:
    """A float32 matrix (rows, fan_in) from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    return torch.empty(rows, fan_in, dtype=torch.float32, device=device).uniform_(-bound, bound)


def apply_adapter(weights: AdapterWeights, x: Tensor, preferences: Tensor, shape: ConditionedShape) -> Tensor:
    """``s B (core(p_row) A x + shift(p_row))`` for each row under its own preference.

    Args:
        weights: The adapter of one layer.
        x: (rows, T, in), in the adapter's dtype.
        preferences: (rows, K).
        shape: The adapter's.

    Returns:
        (rows, T, out)
    """
    core, shift = shape.core(weights.w1, weights.w2, preferences)
    hidden = (x @ weights.a.T) @ core.transpose(-1, -2)
    if shift is not None:
        hidden = hidden + shift[:, None]
    return (shape.scale * hidden) @ weights.b.T


def export_lora(
    weights: AdapterWeights, preference: Tensor, shape: ConditionedShape
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The plain LoRA that equals the adapter at one preference (K,), for servers that know LoRA only.

    ``lora_A = A``, ``lora_B = s B core(p)``: rank R, to be used with lora_alpha = R (scale 1). A shift becomes the bias
    ``s B shift(p)`` of ``lora_B``.

    Returns:
        lora_A (R, in), lora_B (out, R) and the bias (out,), None for a kind without a shift.
    """
    core, shift = shape.core(weights.w1, weights.w2, preference[None])
    bias = None if shift is None else shape.scale * (weights.b @ shift[0])
    return weights.a, shape.scale * (weights.b @ core[0]), bias


def delta_weight(weights: AdapterWeights, preference: Tensor, shape: ConditionedShape) -> Tensor:
    """``s B core(p) A`` as a matrix (out, in), for one preference (K,). Affine in p; a shift is not in it."""
    lora_a, lora_b, _ = export_lora(weights, preference, shape)
    return lora_b @ lora_a


def split_parts(tensors: AdapterWeights) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The shared part (A1, B1, W1) and the conditioned part (A2, B2, W2) as views.

    A and B hold both parts, by rows and by columns. Leading dimensions are kept, so this splits stacked gradients too.
    """
    blind = tensors.w1.shape[-1]
    shared = (tensors.a[..., :blind, :], tensors.b[..., :blind], tensors.w1)
    conditioned = (tensors.a[..., blind:, :], tensors.b[..., blind:], tensors.w2)
    return shared, conditioned


def join_parts(shared: tuple[Tensor, ...], conditioned: tuple[Tensor, ...]) -> AdapterWeights:
    """The inverse of :func:`split_parts`."""
    return AdapterWeights(
        a=torch.cat([shared[0], conditioned[0]], dim=-2),
        b=torch.cat([shared[1], conditioned[1]], dim=-1),
        w1=shared[2],
        w2=conditioned[2],
    )
