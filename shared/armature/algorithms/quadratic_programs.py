"""Small convex quadratic programs, solved exactly by active sets: what the conflict methods need of optimisation.

For a positive semidefinite M (n, n) and a vector l (n,)::

    orthant   argmin_z  z^T M z / 2 + l . z    with  z >= 0                  Lawson and Hanson 1974
    simplex   argmin_w  w^T M w / 2 + l . w    with  w >= 0, sum(w) = 1      Wolfe 1976 for l = 0: the shortest vector
                                                                            of the gradients' convex hull

Both walk from support to support, solve for the unconstrained minimum on each, and stop where no entry outside the
support would lower the objective. M is as small as the number of attributes, so this is cheap beside a training step.

What differs from the textbooks: pseudo-inverses, because gradients may be parallel and M singular. l must then lie in
the range of M (or of M and 1 on the simplex), as it does for every program here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TOLERANCE = 1e-12


def minimise_on_orthant(gram: Tensor, linear: Tensor) -> Tensor:
    """``argmin_z { z^T M z / 2 + l . z : z >= 0 }``: (n, n) and (n,) -> (n,), of entries of the order of 1."""
    return _walk(gram, linear, torch.zeros_like(linear), total=None)


def minimise_on_simplex(gram: Tensor, linear: Tensor) -> Tensor:
    """``argmin_w { w^T M w / 2 + l . w : w >= 0, sum(w) = 1 }``: (n, n) and (n,) -> (n,)."""
    corner = torch.zeros_like(linear)
    corner[(gram.diagonal() / 2 + linear).argmin()] = 1
    return _walk(gram, linear, corner, total=1.0)


def _walk(gram: Tensor, linear: Tensor, start: Tensor, total: float | None) -> Tensor:
    """From a feasible start; ``total`` is what the entries sum to, None where they are free to."""
    z, passive = start, start > 0
    for _ in range(3 * len(linear)):
        slope = gram @ z + linear
        level = z @ slope if total is not None else slope.new_zeros(())
        descent = (level - slope).masked_fill(passive, -torch.inf)
        if descent.max() <= _TOLERANCE:
            break
        passive = passive.clone()
        passive[descent.argmax()] = True
        target = _solve(gram, linear, passive, total)
        while (target[passive] <= 0).any():
            blocking = passive & (target <= 0)
            step = (z[blocking] / (z[blocking] - target[blocking])).min()
            z = z + step * (target - z)
            passive = passive & (z > _TOLERANCE)
            z, target = z * passive, _solve(gram, linear, passive, total)
        z = target
    return z


def _solve(gram: Tensor, linear: Tensor, passive: Tensor, total: float | None) -> Tensor:
    """The minimum over the entries of the support, others 0, whatever their signs."""
    solution = torch.zeros_like(linear)
    matrix, right = gram[passive][:, passive], -linear[passive]
    if total is not None:  # the sum's multiplier is one unknown more
        count = len(matrix)
        border = matrix.new_ones(count + 1, count + 1)
        border[:count, :count], border[count, count] = matrix, 0
        matrix, right = border, torch.cat([right, right.new_tensor([total])])
    solution[passive] = (torch.linalg.pinv(matrix, hermitian=True) @ right)[: int(passive.sum())]
    return solution
