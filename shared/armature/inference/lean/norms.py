"""Root mean square norms of the last dimension: ``x w / sqrt(mean(x^2) + eps)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

Norm = Callable[[Tensor], Tensor]
"""(..., n) -> the same: float32 on a CPU, which adapters read as it is, elsewhere the dtype of ``x``."""


def take_norm(module: Any, eps: float) -> Norm:
    """Take a module's norm: its weight is moved, and the module is empty afterwards."""
    norm = make_norm(module.weight.data, eps)
    module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
    return norm


def make_norm(weight: Tensor, eps: float) -> Norm:
    """Choose the fastest norm on the device of ``weight`` (n,), or (heads, n) if every head has its own."""
    return _NORMS.get(weight.device.type, _fused)(weight, eps)


def _fused(weight: Tensor, eps: float) -> Norm:
    if weight.dim() == 1:
        return lambda x: rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return lambda x: rms_norm(x, weight.shape[-1:], eps=eps) * weight


def _by_hypot(weight: Tensor, eps: float) -> Norm:
    """Make a norm by a hypotenuse, ``sqrt(sum(x^2) + n eps)``: on a CPU the fused norm takes ten steps."""
    width = weight.shape[-1]
    scaled, cathetus = weight.float() * math.sqrt(width), torch.tensor(math.sqrt(width * eps), dtype=torch.float32)

    def norm(x: Tensor) -> Tensor:
        x = x.float()
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / length.hypot_(cathetus)).mul_(scaled)

    return norm


_NORMS: dict[str, Callable[[Tensor, float], Norm]] = {"cpu": _by_hypot}
"""By the type of device; on any other the fused norm."""
