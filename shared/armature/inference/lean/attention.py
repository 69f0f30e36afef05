"""Attention of new tokens over cached keys and values: one kernel per device and number of tokens.

A CPU attends in float32 whatever the model's dtype is, and converts keys and values block by block: bfloat16 halves the
bytes read from memory, and products of one row in bfloat16 would round the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Look = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (rows, T, heads, d), keys and values (rows, kv_heads, columns, d) -> the queries' shape."""
_MakeLook = Callable[[Tensor | None, int], Look]
"""From a mask and the number of key-value heads."""

CONVERTED_NUMBERS = 1 << 20
"""Numbers of keys, and as many of values, that are converted at once, or those of one head: more would not stay in a
processor's cache until they are used."""


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a model of this dtype attends."""
    return torch.float32 if device.type == "cpu" else dtype


def make_look(device: str, width: int, mask: Tensor | None, kv_heads: int) -> Look:
    """Choose the fastest kernel for ``width`` new tokens of each row.

    Args:
        device: Its type.
        width: T, the new tokens.
        mask: -inf at columns to hide (rows or 1, 1, T, columns). None: one token sees every column; several are the
            first of their row and see those before them.
        kv_heads: Heads of keys and values.
    """
    looks = _ONE_TOKEN.get(device, _fused) if width == 1 else _causal
    return looks(mask, kv_heads)


def _causal(mask: Tensor | None, kv_heads: int) -> Look:
    def look(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values, is_grouped = keys.to(queries.dtype), values.to(queries.dtype), queries.shape[2] != kv_heads
        return scaled_dot_product_attention(
            queries.transpose(1, 2), keys, values, mask, is_causal=mask is None, enable_gqa=is_grouped
        ).transpose(1, 2)

    return look


def _fused(mask: Tensor | None, kv_heads: int) -> Look:
    """torch's fused kernel, with queries that share a key-value head side by side, as if they were tokens."""

    def look(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        grouped = queries.reshape(len(keys), kv_heads, -1, queries.shape[-1])
        return scaled_dot_product_attention(grouped, keys, values, mask).view_as(queries)

    return look


def _by_products(mask: Tensor | None, kv_heads: int) -> Look:
    """Make two batched products over all rows and heads, or as many as fit into a CPU's cache converted.

    On a CPU the fused kernel starts anew for every row and head, which over few columns takes longer than attention."""
    nothing = torch.zeros(1, 1, 1, dtype=torch.float32)
    hidden = nothing if mask is None else mask.expand(-1, kv_heads, -1, -1).flatten(0, 1)

    def look(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        grouped = queries.reshape(len(keys) * kv_heads, -1, queries.shape[-1])
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        if keys.dtype == queries.dtype or keys.numel() <= CONVERTED_NUMBERS:
            return _attend(hidden, grouped, keys, values).view_as(queries)
        heads = max(1, CONVERTED_NUMBERS // keys[0].numel())
        parts = (torch.split(part, heads) for part in (hidden.expand(len(keys), 1, -1), grouped, keys, values))
        return torch.cat([_attend(*part) for part in zip(*parts, strict=True)]).view_as(queries)

    return look


def _attend(hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend (h, g, d) over (h, T, d); ``hidden`` (h or 1, 1, T or 1) is -inf at columns to hide, else 0."""
    keys, values = keys.to(queries.dtype), values.to(queries.dtype)
    scores = torch.baddbmm(hidden, queries, keys.transpose(1, 2), alpha=1 / math.sqrt(keys.shape[-1]))
    return torch.bmm(scores.softmax(-1), values)


_ONE_TOKEN: dict[str, _MakeLook] = {"cpu": _by_products}
"""By the type of device; on any other the fused kernel."""
