"""PBLoRA: a low-rank adapter with a matrix core of which one block depends on a preference (PARM, arXiv 2505.06274).

In the form of :mod:`armature.algorithms.conditioned_lora`, whose symbols hold here::

    C(p)    = reshape(p W2, (r2, r2))                                 linear in p
    core(p) = blockdiag(W1, C(p))           shift = 0                 W1 (r1, r1), W2 (K, r2 * r2)
    s       = alpha / r2, for both halves

Parameterisation, initialisation and scale are the paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from armature.algorithms.conditioned_lora import ConditionedShape, Core, uniform


class PBLoRAShape(ConditionedShape):
    """A PBLoRA adapter of ranks r1 and r2."""

    @property
    def scale(self) -> float:
        """s = alpha / r2; the paper divides by r2 alone, so alpha / (r1 + r2) would load its adapters too weak."""
        return self.alpha / self.rank_conditioned

    def core_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of W1 and W2."""
        return (self.rank_shared, self.rank_shared), (self.attributes, self.rank_conditioned**2)

    def initial_core(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """W1 and W2 from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
        first, second = self.core_shapes()
        return uniform(*first, device), uniform(*second, device)

    def core(self, w1: Tensor, w2: Tensor, preferences: Tensor) -> Core:
        """``blockdiag(W1, reshape(p W2))`` under each preference (rows, K)."""
        r1, r2 = self.rank_shared, self.rank_conditioned
        matrix = preferences.new_zeros(len(preferences), r1 + r2, r1 + r2)
        matrix[:, :r1, :r1] = w1
        matrix[:, r1:, r1:] = (preferences @ w2).view(-1, r2, r2)
        return Core(matrix, None)

    def core_gradients(self, gradient: Core, preferences: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        """``dW1_k = sum_rows w_k`` top left block, ``dW2_k = sum_rows w_k p (x)`` bottom right block."""
        r1 = self.rank_shared
        conditioned = gradient.matrix[:, r1:, r1:].flatten(1)
        return (
            torch.einsum("rij,rk->kij", gradient.matrix[:, :r1, :r1], row_weights),
            torch.einsum("rp,rc,rk->kpc", preferences, conditioned, row_weights),
        )
