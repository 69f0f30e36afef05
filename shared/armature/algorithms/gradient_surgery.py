"""Gradient surgery: one update from K attribute gradients that may pull against each other, group by group.

Papers: ProSocialAlign (arXiv 2512.06515, 3.3.1), and those of :mod:`armature.algorithms.conflict_methods`. With G the
stacked gradients (K, d), the update is ``G^T c``, and the coefficients c depend on ``M = G G^T`` alone.

Symbols: K objectives; d parameters; gradients arrive as lists of tensors (K, ...), in any shapes.

What differs from the papers: ``scope`` "shared" resolves on the preference-agnostic parameters only and sums the
conditioned ones plainly, because disagreement there is what teaches preference control.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from armature.algorithms.conflict_methods import METHODS


def resolve_conflicts(
    grams: Mapping[str, Tensor], method: str, scope: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """How much each objective's gradient counts in the update: coefficients (K,) by parameter group.

    Args:
        grams: Gram matrices (K, K) of the groups ``shared`` and ``conditioned``.
        method: A key of :data:`armature.algorithms.conflict_methods.METHODS`.
        scope: ``shared``: resolve on the shared group, sum the other; ``all``: resolve on both as one.
        generator: Draws PCGrad's order; on the CPU.
    """
    resolved = grams["shared"] if scope == "shared" else torch.stack(list(grams.values())).sum(0)
    coefficients = METHODS[method](resolved, generator)
    plain = torch.ones_like(coefficients)
    return {group: coefficients if scope == "all" or group == "shared" else plain for group in grams}


def combine_gradients(gradient: Tensor, coefficients: Tensor) -> Tensor:
    """``G^T c`` for one tensor: (K, ...) and (K,) -> (...)."""
    combined: Tensor = torch.tensordot(coefficients.to(gradient), gradient, dims=1)
    return combined


def gram_matrix(gradients: Iterable[Tensor]) -> Tensor:
    """``M = G G^T`` in float64, summed tensor by tensor and brought to the CPU once: (K, K)."""
    flat = (gradient.flatten(1).double() for gradient in gradients)
    return torch.stack([matrix @ matrix.T for matrix in flat]).sum(0).cpu()


def cosine_matrix(gram: Tensor) -> Tensor:
    """Pairwise cosines of the objectives' gradients: (K, K); NaN where a gradient is zero."""
    norms = gram.diagonal().sqrt()
    return gram / (norms[:, None] * norms)
