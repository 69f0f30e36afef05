"""Matrix products with a fixed weight: one kernel per device.

On a CPU the weight is stored once, in oneDNN's blocked layout, for every number of rows. Measured on 1 to 32 rows it
took between a fifth of ``F.linear``'s time and the same, in float32 and bfloat16, but for one case of 48 that was a
quarter slower on a busy machine; hence no choice by row count. On other devices it is ``F.linear``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

Linear = Callable[[Tensor], Tensor]
"""``y = x W^T + b``: (..., in) -> (..., out)."""

_TYPICAL_ROWS = 16
"""A hint for the blocked layout, which serves every number of rows."""
_FEWEST_ROWS = 4
"""Fewer rows are repeated: with AVX-512, oneDNN takes longer for one row, or two, than for four."""


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Choose the fastest product with ``weight`` (out, in), which it may store anew: drop other copies."""
    if blocks_weights(weight.device):
        return _packed(weight, bias)
    return partial(linear, weight=weight, bias=bias)


def blocks_weights(device: torch.device) -> bool:
    """Tell whether a device stores weights anew, in a layout of their own."""
    return device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _packed(weight: Tensor, bias: Tensor | None) -> Linear:
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)

    def multiply(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")
        return y

    def apply(x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if rows >= _FEWEST_ROWS:
            return multiply(x)
        return multiply(torch.cat([x] * math.ceil(_FEWEST_ROWS / rows)))[: len(x)]

    return apply
