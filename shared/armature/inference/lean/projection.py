"""Linears that read the same input as one product, with their adapters on the branch rows.

The dense weights belong to the base, which any number of adapters share, so the adapters' A are a product of their own
on the branch rows, ``u = x [A_1; A_2]^T``. Then, on those rows only::

    y += (u blockdiag(s core_1(p)^T, s core_2(p)^T) + [s shift_1(p), s shift_2(p)]) blockdiag(B_1^T, B_2^T)

Cores and shifts, which some kinds lack, depend on the preference and are computed once per request, a shift as the
last row of its core (:meth:`Projection.core`). Adapters are float32 whatever the base is. Sizes: m adapted linears of
rank R, a branch rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from armature.algorithms.conditioned_lora import AdapterWeights, ConditionedShape
from armature.inference.lean.linears import Linear, make_linear
from armature.modeling.adapters.peft_pblora import PBLoRALinear

Module = nn.Linear | PBLoRALinear


def take_dense(modules: Sequence[Module]) -> Linear:
    """Take the modules' dense weights as one product: the modules are empty afterwards."""
    linears = [_base(module) for module in modules]
    product = make_linear(torch.cat([linear.weight.data for linear in linears]), _bias(linears))
    for linear in linears:
        linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
    return product


class Projection:
    """One or more linears of the same input: their product ``dense``, and the adapters of the ``modules``."""

    def __init__(self, dense: Linear, modules: Sequence[Module], result_dtype: torch.dtype) -> None:
        """The product's result is converted to ``result_dtype`` before adapters are added."""
        self._dense, self._result_dtype = dense, result_dtype
        adapters = [_active_adapter(module) for module in modules]
        present = [adapter for adapter in adapters if adapter is not None]
        self._shifts = any(shape.shifts for _, shape in present)
        width = sum(shape.rank for _, shape in present)
        self.core_shape = (width + self._shifts, width)
        """(mR, mR) or, with a shift, (mR + 1, mR); zeros without adapters."""
        self._cores = [(weights.w1.data, weights.w2.data, shape) for weights, shape in present]
        self._down = make_linear(torch.cat([weights.a.data for weights, _ in present])) if present else None
        up = _blocks([_base(module).out_features for module in modules], adapters)
        self._up = None if up is None else make_linear(up)

    @property
    def adapted(self) -> bool:
        """Whether any of the linears has an adapter."""
        return bool(self._cores)

    def core(self, preferences: Tensor) -> Tensor:
        """Compute scaled, transposed cores under each preference: (a, K) -> (a, *core_shape), fp32."""
        mixed = preferences.new_zeros(len(preferences), *self.core_shape)
        begin = 0
        for w1, w2, shape in self._cores:
            matrix, shift = shape.core(w1, w2, preferences)
            end = begin + shape.rank
            mixed[:, begin:end, begin:end] = shape.scale * matrix.transpose(-1, -2)
            if shift is not None:
                mixed[:, -1, begin:end] = shape.scale * shift
            begin = end
        return mixed

    def __call__(self, x: Tensor, cores: Tensor | None) -> Tensor:
        """Multiply (rows, T, in) of any float dtype -> (rows, T, out) of the result's.

        ``cores`` (a, *core_shape) are those of the last a rows; None: there are no branch rows.
        """
        y = self._dense(x.to(self._dense.dtype)).to(self._result_dtype)
        if self._down is not None and self._up is not None and cores is not None:
            arm = len(x) - len(cores)
            y[arm:] += self._up(self._condition(self._down(x[arm:].float()), cores))
        return y

    def _condition(self, u: Tensor, cores: Tensor) -> Tensor:
        """``u core + shift`` of each row: (a, T, mR) -> the same."""
        return _by_token(u, cores[:, :-1]) + cores[:, -1:] if self._shifts else _by_token(u, cores)


def _by_token(u: Tensor, cores: Tensor) -> Tensor:
    """Multiply ``u core`` (a, T, mR) token by token: else a result would depend on how many there are."""
    if u.shape[1] == 1:
        return u.bmm(cores)
    return torch.stack(
        [row[:, None].bmm(core.expand(len(row), -1, -1))[:, 0] for row, core in zip(u, cores, strict=True)]
    )


def _base(module: Module) -> nn.Linear:
    linear = module.base_layer if isinstance(module, PBLoRALinear) else module
    assert isinstance(linear, nn.Linear), "the family has linear layers only"
    return linear


def _active_adapter(module: Module) -> tuple[AdapterWeights, ConditionedShape] | None:
    """The module's adapter and its shape."""
    if not isinstance(module, PBLoRALinear):
        return None
    (name,) = module.active_adapters
    return module.weights(name), module.pblora_config[name].shape


def _blocks(sizes: list[int], adapters: list[tuple[AdapterWeights, ConditionedShape] | None]) -> Tensor | None:
    """B of every adapted linear at its own rows of the output: (out, mR)."""
    blocks, begin = [], 0
    for size, adapter in zip(sizes, adapters, strict=True):
        if adapter is not None:
            b = adapter[0].b.data
            blocks.append(torch.nn.functional.pad(b, (0, 0, begin, sum(sizes) - begin - size)))
        begin += size
    return torch.cat(blocks, 1).contiguous() if blocks else None


def _bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    """The linears' biases, zero where one has none."""
    if all(linear.bias is None for linear in linears):
        return None
    empty = [linear.weight.new_zeros(linear.out_features) for linear in linears]
    return torch.cat(
        [zero if linear.bias is None else linear.bias.data for linear, zero in zip(linears, empty, strict=True)]
    )
