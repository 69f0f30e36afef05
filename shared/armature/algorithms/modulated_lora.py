"""Modulated LoRA: shared low-rank features, each scaled and shifted under a preference (UniARM, arXiv 2602.09538).

In the form of :mod:`armature.algorithms.conditioned_lora`, whose symbols hold here::

    gain(p)  = W1 + p G      core(p) = diag(gain(p))                  W1 (1, R), ones at first
    shift(p) = p H                                                    W2 = [G | H] (K, 2 R); scaled: W2 = G (K, R)
    s        = alpha / R                                              R = r1 + r2: no feature is left unmodulated

The paper extracts features by a module blind to the preference, then modulates them by an affine transformation
conditioned on the mixed preference vector. That is all its abstract says: this parameterisation is ours. Gain and shift
are linear in p instead of a network's output, so a row of a batch brings 2 R numbers, and an attribute can be appended.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from armature.algorithms.conditioned_lora import ConditionedShape, Core

_GAIN = 3.0


class ScaledShape(ConditionedShape):
    """Features that are scaled and not shifted: one preference of it is a LoRA without bias."""

    @property
    def scale(self) -> float:
        """s = alpha / R."""
        return self.alpha / self.rank

    def core_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of W1 and W2."""
        return (1, self.rank), (self.attributes, self.rank)

    def initial_core(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """``W1 = 1``; G from U(-3, 3), so that a feature is turned over between attributes from the first step on.

        Gains that all start near 1 keep their sign for hundreds of steps, and the preference steers nothing.
        """
        gain = torch.empty(self.attributes, self.rank, dtype=torch.float32, device=device)
        return torch.ones(1, self.rank, device=device), gain.uniform_(-_GAIN, _GAIN)

    def core(self, w1: Tensor, w2: Tensor, preferences: Tensor) -> Core:
        """``diag(W1 + p G)`` under each preference (rows, K)."""
        return Core((w1 + preferences @ w2).diag_embed(), None)

    def core_gradients(self, gradient: Core, preferences: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        """``dW1_k = sum_rows w_k`` diagonal, ``dG_k = sum_rows w_k p (x)`` diagonal."""
        gain = gradient.matrix.diagonal(dim1=-2, dim2=-1)
        return row_weights.T[:, None] @ gain, torch.einsum("rp,rc,rk->kpc", preferences, gain, row_weights)


class ModulatedShape(ScaledShape):
    """Features that are scaled and shifted."""

    shifts: ClassVar[bool] = True

    def core_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of W1 and W2."""
        return (1, self.rank), (self.attributes, 2 * self.rank)

    def initial_core(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """As of :class:`ScaledShape`, and H = 0."""
        w1, gain = super().initial_core(device)
        return w1, torch.cat([gain, torch.zeros_like(gain)], dim=1)

    def core(self, w1: Tensor, w2: Tensor, preferences: Tensor) -> Core:
        """``diag(W1 + p G)`` and ``p H`` under each preference (rows, K)."""
        gain, shift = w2.chunk(2, dim=1)
        return Core(super().core(w1, gain, preferences).matrix, preferences @ shift)

    def core_gradients(self, gradient: Core, preferences: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        """As of :class:`ScaledShape`, and ``dH_k = sum_rows w_k p (x)`` the gradient at the shift."""
        assert gradient.shift is not None
        w1, gain = super().core_gradients(gradient, preferences, row_weights)
        shift = torch.einsum("rp,rc,rk->kpc", preferences, gradient.shift, row_weights)
        return w1, torch.cat([gain, shift], dim=-1)
