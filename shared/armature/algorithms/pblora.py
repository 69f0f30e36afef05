"""PBLoRA: a low-rank adapter whose core depends on a preference (PARM, arXiv 2505.06274).

For a frozen linear layer ``y = W0 x`` with K attributes and a preference p on their simplex::

    C(p)  = reshape(p W2, (r2, r2))                                       linear in p
    DW(p) = B core(p) A          core(p) = blockdiag(W1, C(p))            rank <= R = r1 + r2
    y     = W0 x + s DW(p) x     s = alpha / r2, for both halves

Symbols: ``in``, ``out`` the layer's sizes; r1 the shared rank (no preference), r2 the conditioned rank, R = r1 + r2; K
attributes; ``rows`` the sequences of a batch, T their tokens.

What differs from the paper's code: DW(p) is never formed while running. ``x`` goes through A, a core of its own row,
and B, so a batch may hold as many preferences as rows and the cost is that of a LoRA of rank R. Parameterisation,
initialisation and scale are the paper's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PBLoRA(NamedTuple):
    """The four tensors of one adapted layer (or their gradients, with leading dimensions of their own)."""

    a: Tensor
    """A: (R, in)"""
    b: Tensor
    """B: (out, R)"""
    w1: Tensor
    """W1: (r1, r1)"""
    w2: Tensor
    """W2: (K, r2 * r2)"""

    @property
    def rank_shared(self) -> int:
        """r1."""
        return self.w1.shape[-1]

    @property
    def rank_conditioned(self) -> int:
        """r2."""
        return self.a.shape[-2] - self.rank_shared


class PBLoRAShape(NamedTuple):
    """How large the adapter is: r1, r2, K and alpha."""

    rank_shared: int
    rank_conditioned: int
    attributes: int
    alpha: float

    @property
    def scale(self) -> float:
        """s = alpha / r2; the paper divides by r2 alone, so alpha / (r1 + r2) would load its adapters too weak."""
        return self.alpha / self.rank_conditioned

    def tensor_shapes(self, in_features: int, out_features: int) -> tuple[tuple[int, int], ...]:
        """Of A, B, W1 and W2 on a layer of these sizes."""
        r1, r2 = self.rank_shared, self.rank_conditioned
        return ((r1 + r2, in_features), (out_features, r1 + r2), (r1, r1), (self.attributes, r2 * r2))


def initialise(in_features: int, out_features: int, shape: PBLoRAShape, device: torch.device | None = None) -> PBLoRA:
    """Fresh float32 tensors: A, W1, W2 from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), B = 0, so that DW = 0.

    Draws from torch's global generator, as every torch layer does.
    """
    r1, r2 = shape.rank_shared, shape.rank_conditioned

    def uniform(rows: int, fan_in: int) -> Tensor:
        bound = 1 / math.sqrt(max(fan_in, 1))
        return torch.empty(rows, fan_in, dtype=torch.float32, device=device).uniform_(-bound, bound)

    return PBLoRA(
        a=uniform(r1 + r2, in_features),
        b=torch.zeros(out_features, r1 + r2, dtype=torch.float32, device=device),
        w1=uniform(r1, r1),
        w2=uniform(shape.attributes, r2 * r2),
    )


def mix_core(weights: PBLoRA, preferences: Tensor) -> Tensor:
    """``core(p) = blockdiag(W1, reshape(p W2))`` per row.

    Args:
        weights: The adapter of one layer.
        preferences: (rows, K).

    Returns:
        (rows, R, R)
    """
    r1, r2 = weights.rank_shared, weights.rank_conditioned
    core = preferences.new_zeros(len(preferences), r1 + r2, r1 + r2)
    core[:, :r1, :r1] = weights.w1
    core[:, r1:, r1:] = (preferences @ weights.w2).view(-1, r2, r2)
    return core


def apply_core(weights: PBLoRA, x: Tensor, core: Tensor, scale: float) -> Tensor:
    """``s B core A x`` in factored form: x (rows, T, in), core (rows, R, R) -> (rows, T, out)."""
    hidden = (x @ weights.a.T) @ core.transpose(-1, -2)
    return (scale * hidden) @ weights.b.T


def apply_pblora(weights: PBLoRA, x: Tensor, preferences: Tensor, scale: float) -> Tensor:
    """``s DW(p_row) x`` for each row under its own preference.

    Args:
        weights: The adapter of one layer.
        x: (rows, T, in), in the adapter's dtype.
        preferences: (rows, K).
        scale: alpha / r2.

    Returns:
        (rows, T, out)
    """
    return apply_core(weights, x, mix_core(weights, preferences), scale)


def delta_weight(weights: PBLoRA, preference: Tensor, scale: float) -> Tensor:
    """``s DW(p)`` as a matrix (out, in), for one preference (K,). Affine in p."""
    core = mix_core(weights, preference[None])[0]
    return scale * (weights.b @ core @ weights.a)


def export_lora(weights: PBLoRA, preference: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The plain LoRA that equals the adapter at one preference, for servers that know LoRA only.

    ``lora_A = A``, ``lora_B = s B core(p)``: rank R, to be used with lora_alpha = R (scale 1).

    Returns:
        lora_A (R, in) and lora_B (out, R).
    """
    core = mix_core(weights, preference[None])[0]
    return weights.a, scale * (weights.b @ core)


def split_parts(tensors: PBLoRA) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The shared part (A1, B1, W1) and the conditioned part (A2, B2, W2) as views.

    A and B hold both parts, by rows and by columns. Leading dimensions are kept, so this splits stacked gradients too.
    """
    r1 = tensors.rank_shared
    shared = (tensors.a[..., :r1, :], tensors.b[..., :r1], tensors.w1)
    conditioned = (tensors.a[..., r1:, :], tensors.b[..., r1:], tensors.w2)
    return shared, conditioned


def join_parts(shared: tuple[Tensor, ...], conditioned: tuple[Tensor, ...]) -> PBLoRA:
    """The inverse of :func:`split_parts`."""
    return PBLoRA(
        a=torch.cat([shared[0], conditioned[0]], dim=-2),
        b=torch.cat([shared[1], conditioned[1]], dim=-1),
        w1=shared[2],
        w2=conditioned[2],
    )
