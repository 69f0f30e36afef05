"""Conflict methods: how much each of K gradients that may pull against each other counts in one update.

Papers: PCGrad (arXiv 2001.06782, Alg. 1; the projection of ProSocialAlign 3.3.1), CAGrad (2110.14048), MGDA
(1810.04650), Aligned-MTL (2305.19000), UPGrad (2406.16232). With G the stacked gradients (K, d), every method's update
is ``G^T c``, and the coefficients c depend on the Gram matrix ``M = G G^T`` alone::

    sum      c = 1                                                          PARM's plain preference-weighted sum
    pcgrad   for each i, for j in random order: if g_i' . g_j < 0: g_i' -= (g_i' . g_j / |g_j|^2) g_j; sum of the g_i'
    cagrad   c = (1 + K a |g_0| / |G^T w| w) / (1 + a^2),  a = 1/2,  g_0 the mean gradient,
             w = argmin_simplex g_0 . G^T w + a |g_0| |G^T w|               best worst case within a |g_0| of the mean
    mgda     c = K argmin_simplex w^T M w                                  the shortest vector in the gradients' hull
    aligned  c = B 1,  B = sqrt(l_min) V L^-1/2 V^T  with  M = V L V^T      after it all directions weigh the same
    upgrad   c = sum_i argmin_v v^T M v  with  v >= e_i                     never against any objective: M c >= 0

What differs from the papers: the gradients are already preference-weighted, row by row; an objective whose gradient is
zero takes no part (its preference was 0), so K counts the others; every method has the scale of ``sum``, hence the
factors K (CAGrad's authors' code has it too) and the rescaling by ``1 + a^2`` (their mode 1).

Symbols: K objectives; d parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from armature.algorithms.quadratic_programs import minimise_on_orthant, minimise_on_simplex

_RIDGE = 1e-6
_REACH = 0.5
"""CAGrad's ``a``: how far from the mean gradient it looks, as a share of the mean's length."""
_PRECISION = 1e-10
_NOTHING = 1e-9
"""Length of a combination of gradients of which the longest is 1 that counts as none."""


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


def shorten(gram: Tensor, generator: torch.Generator) -> Tensor:
    """MGDA: ``c = K w`` with the shortest ``G^T w`` on the simplex, a direction that no objective opposes.

    ``g_i . d >= |d|^2 / K`` for every objective; d = 0 where some mean of the gradients vanishes.
    """
    return _among_present(gram, lambda unit: len(unit) * minimise_on_simplex(unit, torch.zeros_like(unit[0])))


def average_with_care(gram: Tensor, generator: torch.Generator) -> Tensor:
    """CAGrad: of all directions within ``a |g_0|`` of the mean gradient, the one that serves the worst-off best."""
    return _among_present(gram, _best_near_mean)


def _best_near_mean(gram: Tensor) -> Tensor:
    """CAGrad's c. Its w is found through ``|v| = min_t (|v|^2 / t + t) / 2``: a simplex program for each length t.

    The best t is where ``|G^T w_t| = t``. The left side grows with t, so it bounds that t from the side it lies on, and
    at least halves the interval.
    """
    inner = gram.mean(1)  # g_0 . g_i
    radius = _REACH * inner.mean().clamp(min=0).sqrt()
    coefficients = torch.ones_like(inner)
    low, high = torch.zeros_like(radius), torch.ones_like(radius)
    while high - low > _PRECISION:
        middle = (low + high) / 2
        w = minimise_on_simplex(radius * gram, middle * inner)
        length = (w @ gram @ w).clamp(min=0).sqrt()
        low, high = (length, high) if length > middle else (low, length)
    if length > _NOTHING:
        coefficients = coefficients + len(gram) * radius / length * w
    return coefficients / (1 + _REACH**2)


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
    solutions = [corner + minimise_on_orthant(cosines, cosines @ corner) for corner in corners]
    return inverse * (norms[:, None] * torch.stack(solutions)).sum(0)


def _among_present(gram: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Coefficients of the objectives that have a gradient, from their Gram matrix scaled to entries of at most 1."""
    present = gram.diagonal() > 0
    coefficients = torch.zeros(len(gram), dtype=gram.dtype)
    if present.any():
        kept = gram[present][:, present]
        coefficients[present] = solve(kept / kept.diagonal().max())
    return coefficients


METHODS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "sum": weigh_plainly,
    "pcgrad": project_conflicts,
    "cagrad": average_with_care,
    "mgda": shorten,
    "aligned": align,
    "upgrad": project_on_dual_cone,
}
"""Coefficients (K,) from a Gram matrix (K, K), by name."""
