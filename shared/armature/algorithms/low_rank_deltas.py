"""Adding low-rank deltas to weights block by block, so that a checkpoint of any size can be streamed.

Paper: LoRA (arXiv 2106.09685), section 4.1; here with the scale folded into a factor::

    W <- W + L R                                 in float32, cast to the stored dtype once

Symbols: W (rows, columns) a weight as stored, L (rows, r), R (r, columns). Of L R only the rows that a block of W's
entries touches are ever formed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from armature.algorithms.tensor_sources import Shape


class LowRankDelta:
    """Deltas by the name of their weight.

    Args:
        factors: L and R in float32.
    """

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self._factors = factors
        self.shapes: dict[str, Shape] = {
            name: (left.shape[0], right.shape[1]) for name, (left, right) in sorted(factors.items())
        }

    def add_block(self, entries: Tensor, name: str, start: int) -> None:
        """Add to the flat entries of a weight from ``start`` on, in place."""
        left, right = (factor.to(entries.device) for factor in self._factors[name])
        columns = right.shape[1]
        first, last = start // columns, -(-(start + len(entries)) // columns)
        added = (left[first:last] @ right).view(-1)[start - first * columns :][: len(entries)]
        entries.copy_(entries.float() + added)
