"""Linears that read the same input as one product, with their PBLoRA adapters on the ARM rows.

The adapters' A matrices stand below the weights, ``[W_1; W_2; A_1; A_2]``, so one product gives the outputs and the
low-rank inputs ``u``. Then, on ARM rows only::

    y += (u blockdiag(s core_1(p)^T, s core_2(p)^T)) blockdiag(B_1^T, B_2^T)

The cores depend on the preference and are computed once per request (:meth:`Projection.mix`). Sizes: m adapted linears
of rank R, a ARM rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from armature.algorithms.pblora import PBLoRA, mix_core
from armature.modeling.lean.linears import make_linear
from armature.modeling.peft_pblora import PBLoRALinear


class Projection:
    """One or more linears of the same input. Takes their weights: the modules are empty afterwards."""

    def __init__(self, modules: Sequence[nn.Linear | PBLoRALinear]) -> None:
        linears = [_base(module) for module in modules]
        self._out = sum(linear.out_features for linear in linears)
        adapters = [_active_adapter(module) for module in modules]
        self._adapters = [adapter for adapter in adapters if adapter is not None]
        self.core_width = sum(len(weights.a) for weights, _ in self._adapters)
        """mR; 0 without adapters."""
        first = linears[0].weight
        weights = [linear.weight.data for linear in linears]
        self._up = _blocks([len(weight) for weight in weights], adapters)
        bias = _bias(linears, self.core_width)
        self._linear = make_linear(torch.cat([*weights, *(w.a.data.to(first) for w, _ in self._adapters)]), bias)
        for linear in linears:
            linear.weight = nn.Parameter(first.new_empty(0), requires_grad=False)

    @property
    def adapted(self) -> bool:
        """Whether any of the linears has an adapter."""
        return bool(self._adapters)

    def mix(self, preferences: Tensor) -> Tensor:
        """The scaled cores under each preference: (a, K) -> (a, mR, mR), fp32, transposed for rows on the left."""
        cores = [scale * mix_core(weights, preferences).transpose(-1, -2) for weights, scale in self._adapters]
        mixed = preferences.new_zeros(len(preferences), self.core_width, self.core_width)
        begin = 0
        for core in cores:
            end = begin + core.shape[-1]
            mixed[:, begin:end, begin:end] = core
            begin = end
        return mixed

    def __call__(self, x: Tensor, cores: Tensor | None) -> Tensor:
        """(rows, T, in) -> (rows, T, out); ``cores`` (a, mR, mR) are those of the last a rows, None: no ARM rows."""
        both = self._linear(x)
        y = both[..., : self._out]
        if self._up is not None and cores is not None:
            arm = len(x) - len(cores)
            low = both[arm:, :, self._out :].to(cores.dtype)
            y[arm:] += low.bmm(cores) @ self._up
        return y


def _base(module: nn.Linear | PBLoRALinear) -> nn.Linear:
    linear = module.base_layer if isinstance(module, PBLoRALinear) else module
    assert isinstance(linear, nn.Linear), "the family has linear layers only"
    return linear


def _active_adapter(module: nn.Linear | PBLoRALinear) -> tuple[PBLoRA, float] | None:
    """The module's adapter and its scale s."""
    if not isinstance(module, PBLoRALinear):
        return None
    (name,) = module.active_adapters
    return module.weights(name), module.pblora_config[name].shape.scale


def _blocks(sizes: list[int], adapters: list[tuple[PBLoRA, float] | None]) -> Tensor | None:
    """B^T of every adapted linear at its own columns of the output: (mR, out)."""
    blocks, begin = [], 0
    for size, adapter in zip(sizes, adapters, strict=True):
        if adapter is not None:
            b = adapter[0].b.data
            blocks.append(torch.nn.functional.pad(b.T, (begin, sum(sizes) - begin - size)))
        begin += size
    return torch.cat(blocks).contiguous() if blocks else None


def _bias(linears: Sequence[nn.Linear], low_rank: int) -> Tensor | None:
    """The linears' biases, zero where one has none and for the low-rank outputs."""
    if all(linear.bias is None for linear in linears):
        return None
    weight = linears[0].weight
    parts = [weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias.data for linear in linears]
    return torch.cat([*parts, weight.new_zeros(low_rank)])
