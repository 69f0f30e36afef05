"""Matrix products with a fixed weight: one kernel per device.

On a CPU the weight is stored once, in oneDNN's blocked layout, for every number of rows. Measured on 1 to 32 rows it
took between a fifth of ``F.linear``'s time and the same, in float32 and bfloat16, but for one case of 48 that was a
quarter slower on a busy machine; hence no choice by row count. On other devices it is ``F.linear``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

_TYPICAL_ROWS = 16
"""A hint for the blocked layout, which serves every number of rows."""
_FEWEST_ROWS = 4
"""Fewer rows are repeated: with AVX-512, oneDNN takes longer for one row, or two, than for four."""


class Linear(Protocol):
    """``y = x W^T + b``: (..., in) -> (..., out), both of ``dtype``."""

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and results."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""

    def in_float32(self) -> Linear:
        """Return the same product computed in float32, for a self-test: the weight is widened at each call."""


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Choose the fastest product with ``weight`` (out, in), which it may store anew: drop other copies."""
    if blocks_weights(weight.device):
        return _Blocked(torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS), bias)
    return _Plain(weight, bias)


def blocks_weights(device: torch.device) -> bool:
    """Tell whether a device stores weights anew, in a layout of their own."""
    return device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Plain:
    weight: Tensor
    bias: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def in_float32(self) -> Linear:
        return _Widened(self)


@dataclass(frozen=True)
class _Blocked:
    weight: Tensor
    """In oneDNN's layout."""
    bias: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if rows >= _FEWEST_ROWS:
            return self._multiply(x)
        return self._multiply(torch.cat([x] * math.ceil(_FEWEST_ROWS / rows)))[: len(x)]

    def in_float32(self) -> Linear:
        return _Widened(self)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


@dataclass(frozen=True)
class _Widened:
    stored: _Plain | _Blocked
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.stored.weight, self.stored.bias
        dense = weight.to_dense() if weight.is_mkldnn else weight
        return functional.linear(x, dense.float(), None if bias is None else bias.float())

    def in_float32(self) -> Linear:
        return self
