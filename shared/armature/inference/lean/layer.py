"""One decoder layer over trunk rows and, after them, branch rows with the adapter on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from armature.inference.lean.architecture import Architecture
from armature.inference.lean.attention import SERIAL_NUMBERS, attention_dtype
from armature.inference.lean.kv_cache import Attend
from armature.inference.lean.linears import Linear
from armature.inference.lean.norms import Norm, make_norm, take_norm
from armature.inference.lean.projection import Projection, take_dense


class Cores(NamedTuple):
    """The branch rows' cores at a layer's four projections; None: no adapter there."""

    qkv: Tensor | None = None
    """(a, *core_shape), as of :class:`Projection`"""
    out: Tensor | None = None
    gate_up: Tensor | None = None
    down: Tensor | None = None


class Rotation(NamedTuple):
    """The rotary embedding of some positions: (rows or 1, T, 1, d) each."""

    cos: Tensor
    sin: Tensor
    """Signed, so that ``x' = x cos + swap_halves(x) sin``."""

    def extend(self, rows: Tensor) -> Rotation:
        """Append these rows' rotations once more; a rotation that all rows share stays as it is."""
        if len(self.cos) == 1:
            return self
        return Rotation(*(torch.cat([part, part[rows]]) for part in self))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate (rows, T, heads, d)."""
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * self.cos, torch.cat((second, first), dim=-1), self.sin)


@dataclass(frozen=True)
class RotaryPositions:
    """Rotations by position, read from tables.

    Computed anew, they would depend on how many are computed at once.
    """

    cos: Tensor
    """(positions, d / 2), float32."""
    sin: Tensor
    dtype: torch.dtype
    """Of the rotations."""

    @classmethod
    def of(cls, rotary: Any, positions: int, dtype: torch.dtype) -> RotaryPositions:
        """Compute the tables from the frequencies of a loaded model."""
        frequencies: Tensor = rotary.inv_freq.float()
        angles = torch.arange(positions, device=frequencies.device, dtype=torch.float32)[:, None] * frequencies
        return cls(angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling, dtype)

    def at(self, positions: Tensor) -> Rotation:
        """Return the rotation of positions (rows, T); padding may be past the last one."""
        known = positions.clamp(max=len(self.cos) - 1)
        cos, sin = (table[known][:, :, None].to(self.dtype) for table in (self.cos, self.sin))
        return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


@dataclass(frozen=True)
class LayerWeights:
    """The dense weights of one layer, which layers under different adapters share."""

    products: tuple[Linear, ...]
    """In the order of :class:`Cores`."""
    result_dtypes: tuple[torch.dtype, ...]
    """Of the products, in that order: the next operation computes in them."""
    norms: tuple[Norm, Norm]
    head_norm: Norm | None

    @classmethod
    def take(cls, module: Any, architecture: Architecture) -> LayerWeights:
        """Take the module's projections and norms out of it."""
        device, own = module.input_layernorm.weight.device, module.input_layernorm.weight.dtype
        return cls(
            products=tuple(take_dense(modules) for modules in _projected(module)),
            result_dtypes=(attention_dtype(device, own), own, own, own),
            norms=(
                take_norm(module.input_layernorm, architecture.eps),
                take_norm(module.post_attention_layernorm, architecture.eps),
            ),
            head_norm=_head_norm(module.self_attn, architecture) if architecture.qk_norm else None,
        )

    def in_float32(self) -> LayerWeights:
        """Return the same weights with products computed in float32."""
        products = tuple(product.in_float32() for product in self.products)
        return replace(self, products=products, result_dtypes=(torch.float32,) * len(products))


class LeanLayer:
    """Attention and MLP of one layer: dense weights, and the adapters on the module they were taken from."""

    def __init__(self, weights: LayerWeights, module: Any, architecture: Architecture) -> None:
        parts = zip(weights.products, _projected(module), weights.result_dtypes, strict=True)
        self.qkv, self.out, self.gate_up, self.down = (Projection(*part) for part in parts)
        self._norms, self._head_norm = weights.norms, weights.head_norm
        self._sizes = [architecture.heads, architecture.kv_heads]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """In the order of :class:`Cores`."""
        return self.qkv, self.out, self.gate_up, self.down

    def forward(self, number: int, x: Tensor, rotation: Rotation, attend: Attend, cores: Cores) -> Tensor:
        """Compute the layer: (rows, T, hidden) -> the same."""
        x = x + self._attention(number, self._norms[0](x), rotation, attend, cores)
        gate, up = self.gate_up(self._norms[1](x), cores.gate_up).chunk(2, dim=-1)
        return x + self.down(_silu(gate) * up, cores.down)

    def _attention(self, number: int, x: Tensor, rotation: Rotation, attend: Attend, cores: Cores) -> Tensor:
        heads, kv_heads = self._sizes
        qkv = self.qkv(x, cores.qkv).view(*x.shape[:2], heads + 2 * kv_heads, -1)
        queries_keys, values = torch.split(qkv, [heads + kv_heads, kv_heads], dim=2)
        if self._head_norm is not None:
            queries_keys = self._head_norm(queries_keys)
        queries, keys = torch.split(rotation(queries_keys), self._sizes, dim=2)
        seen = attend(number, queries, keys, values)
        return self.out(seen.flatten(2), cores.out)


def _silu(x: Tensor) -> Tensor:
    """Compute silu of (rows, T, n); on a CPU few tokens at a time, each by the same instructions."""
    if x.device.type != "cpu" or x.numel() < SERIAL_NUMBERS:
        return silu(x)
    tokens = x.flatten(0, 1)
    parts = torch.split(tokens, max(1, (SERIAL_NUMBERS - 1) // x.shape[-1]))
    return torch.cat([silu(part) for part in parts]).view(x.shape)


def _projected(module: Any) -> tuple[list[Any], ...]:
    """The linears that read the same input, in the order of :class:`Cores`."""
    attention, mlp = module.self_attn, module.mlp
    return (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    )


def _head_norm(attention: Any, architecture: Architecture) -> Norm:
    """Of queries and keys side by side, each head by itself."""
    query, key = attention.q_norm.weight.data, attention.k_norm.weight.data
    weight = torch.cat([query.expand(architecture.heads, -1), key.expand(architecture.kv_heads, -1)])
    return make_norm(weight, architecture.eps)
