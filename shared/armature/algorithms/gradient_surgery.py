"""Conflict resolution: one update from K attribute gradients that may pull against each other.

Papers: PCGrad (arXiv 2001.06782, Alg. 1; the projection of ProSocialAlign 3.3.1), Aligned-MTL (2305.19000),
UPGrad (2406.16232). With G the stacked gradients (K, d), every method's update is ``G^T c``, and the
coefficients c depend on the Gram matrix ``M = G G^T`` alone::

    sum      c = 1                                                          PARM's plain preference-weighted sum
    pcgrad   for each i, for j in random order: if g_i' . g_j < 0: g_i' -= (g_i' . g_j / |g_j|^2) g_j; sum of the g_i'
    aligned  c = B 1,  B = sqrt(l_min) V L^-1/2 V^T  with  M = V L V^T      after it all directions weigh the same
    upgrad   c = sum_i argmin_v v^T M v  with  v >= e_i                     never against any objective: M c >= 0

Symbols: K objectives; d parameters; gradients arrive as lists of tensors (K, ...), in any shapes.

What differs from the papers: the gradients are already preference-weighted, row by row; an objective whose gradient is
zero takes no part (its preference was 0). ``scope`` "shared" resolves on the preference-agnostic parameters only and
sums the conditioned ones plainly, because disagreement there is what teaches preference control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = 1e-12
_RIDGE = 1e-6


@dataclass(frozen=True)
class Resolution:
    """How much each objective's gradient counts in the update, per parameter group, and how far they conflicted."""

    coefficients: dict[str, Tensor]
    """(K,) by group."""
    cosines: dict[str, Tensor]
    """(K, K) by group; NaN where a gradient is zero."""


def resolve_conflicts(
    groups: Mapping[str, Sequence[Tensor]], method: str, scope: str, generator: torch.Generator
) -> Resolution:
    """Coefficients for every parameter group.

    Args:
        groups: Gradients (K, ...) of the groups ``shared`` and ``conditioned``.
        method: A key of :data:`METHODS`.
        scope: ``shared``: resolve on the shared group, sum the other; ``all``: resolve on both as one.
        generator: Draws PCGrad's order; on the CPU.
    """
    grams = {group: gram_matrix(tensors) for group, tensors in groups.items()}
    resolved = grams["shared"] if scope == "shared" else sum(grams.values(), torch.zeros_like(grams["shared"]))
    coefficients = METHODS[method](resolved, generator)
    plain = torch.ones_like(coefficients)
    return Resolution(
        {group: coefficients if scope == "all" or group == "shared" else plain for group in groups},
        {group: cosine_matrix(gram) for group, gram in grams.items()},
    )


def combine_gradients(gradient: Tensor, coefficients: Tensor) -> Tensor:
    """``G^T c`` for one tensor: (K, ...) and (K,) -> (...)."""
    combined: Tensor = torch.tensordot(coefficients.to(gradient), gradient, dims=1)
    return combined


def gram_matrix(gradients: Iterable[Tensor]) -> Tensor:
    """``M = G G^T`` in float64 on the CPU, summed tensor by tensor: (K, K)."""
    flat = (gradient.flatten(1).double() for gradient in gradients)
    return torch.stack([(matrix @ matrix.T).cpu() for matrix in flat]).sum(0)


def cosine_matrix(gram: Tensor) -> Tensor:
    """Pairwise cosines of the objectives' gradients: (K, K)."""
    norms = gram.diagonal().sqrt()
    return gram / (norms[:, None] * norms)


def weigh_plainly(gram: Tensor, generator: torch.Generator) -> Tensor:
    """``c = 1``."""
    return torch.ones(len(gram), dtype=gram.dtype)


def project_conflicts(gram: Tensor, generator: torch.Generator) -> Tensor:
    """PCGrad. Each g_i' is kept as its coefficients over the original gradients, so M is all that is needed."""
    count = len(gram)
    total = torch.zeros(count, dtype=gram.dtype)
    for i in range(count):
        projected = torch.zeros(count, dtype=gram.dtype)
        projected[i] = 1
        for j in torch.randperm(count, generator=generator).tolist():
            inner = float(gram[j] @ projected)
            if j != i and inner < 0 and gram[j, j] > 0:
                projected[j] -= inner / gram[j, j]
        total += projected
    return total


def align_gram(gram: Tensor) -> Tensor:
    """Aligned-MTL's ``B``: ``B M B`` is ``l_min`` times the identity on the span of the gradients."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    kept = eigenvalues > eigenvalues.amax() * len(gram) * torch.finfo(torch.float32).eps
    if not kept.any():
        return torch.zeros_like(gram)
    values, vectors = eigenvalues[kept], vectors[:, kept]
    basis: Tensor = (vectors * (values.min() / values).sqrt()) @ vectors.T
    return basis


def align(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Aligned-MTL: ``c = B 1``."""
    return align_gram(gram).sum(1)


def project_on_dual_cone(gram: Tensor, generator: torch.Generator) -> Tensor:
    """UPGrad: ``c = sum_i argmin_v { v^T M v : v >= e_i }``, so that ``M c >= 0`` up to the ridge.

    The ridge bounds c where two gradients are almost opposite: ``g_i . d >= -ridge |g_i|^2 c_i``.
    """
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    corners = torch.eye(len(gram), dtype=gram.dtype)
    cosines = gram * inverse[:, None] * inverse + _RIDGE * corners  # of unit gradients, so that one tolerance fits all
    solutions = [corner + _minimise_quadratic(cosines, cosines @ corner) for corner in corners]
    return inverse * (norms[:, None] * torch.stack(solutions)).sum(0)


def _minimise_quadratic(gram: Tensor, linear: Tensor) -> Tensor:
    """``argmin_z { z^T M z / 2 + linear . z : z >= 0 }``, exactly, by Lawson and Hanson's active sets."""
    z, passive = torch.zeros_like(linear), torch.zeros(len(linear), dtype=torch.bool)
    for _ in range(3 * len(linear)):
        descent = (-(gram @ z) - linear).masked_fill(passive, -torch.inf)
        if descent.max() <= _TOLERANCE:
            break
        passive[descent.argmax()] = True
        target = _solve(gram, linear, passive)
        while (target[passive] <= 0).any():
            blocking = passive & (target <= 0)
            step = (z[blocking] / (z[blocking] - target[blocking])).min()
            z = z + step * (target - z)
            passive &= z > _TOLERANCE
            z, target = z * passive, _solve(gram, linear, passive)
        z = target
    return z


def _solve(gram: Tensor, linear: Tensor, passive: Tensor) -> Tensor:
    solution = torch.zeros_like(linear)
    solution[passive] = -torch.linalg.pinv(gram[passive][:, passive], hermitian=True) @ linear[passive]
    return solution


METHODS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "sum": weigh_plainly,
    "pcgrad": project_conflicts,
    "aligned": align,
    "upgrad": project_on_dual_cone,
}
"""Coefficients (K,) from a Gram matrix (K, K), by name."""
