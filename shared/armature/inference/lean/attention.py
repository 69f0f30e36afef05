"""Attention of new tokens over cached keys and values: one kernel per device and number of tokens.

A CPU attends in float32 whatever the model's dtype is, and converts keys and values block by block: bfloat16 halves the
bytes read from memory, and products of one row in bfloat16 would round the scores. Its sums are split at fixed columns
and its prompts at fixed positions, so that neighbours, chunks and cached prefixes do not change a result to the bit
(docs/decisions/0043-a-cpu-sums-in-fixed-blocks.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from armature.inference.kv_memory import COLUMN_BLOCK

Look = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (rows, T, heads, d), keys and values (rows, kv_heads, columns, d) -> the queries' shape."""

CONVERTED_NUMBERS = 1 << 20
"""Numbers of keys, and as many of values, that are converted at once, or those of one head: more would not stay in a
processor's cache until they are used."""
SERIAL_NUMBERS = 1 << 15
"""From this many numbers on, torch gives parts of an elementwise operation to threads. The end of a part is computed by
other instructions, so results would depend on where it is."""
QUERY_BLOCK = 32
"""Positions of a prompt that attend together: positions 0 to 31, 32 to 63, ..."""


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a model of this dtype attends."""
    return torch.float32 if device.type == "cpu" else dtype


def look_fused(mask: Tensor | None, kv_heads: int, width: int) -> Look:
    """Make torch's fused attention of ``width`` new tokens per row, for devices other than a CPU.

    Args:
        mask: -inf at columns to hide (rows or 1, 1, T, columns). None: one token sees every column; several are the
            first of their row and see those before them.
        kv_heads: Heads of keys and values.
        width: T.
    """

    def look_of_one(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """With queries that share a key-value head side by side, as if they were tokens."""
        grouped = queries.reshape(len(keys), kv_heads, -1, queries.shape[-1])
        return scaled_dot_product_attention(grouped, keys, values, mask).view_as(queries)

    def look_of_several(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.to(queries.dtype),
            values.to(queries.dtype),
            mask,
            is_causal=mask is None,
            enable_gqa=queries.shape[2] != kv_heads,
        ).transpose(1, 2)

    return look_of_one if width == 1 else look_of_several


def look_by_position(starts: Sequence[int], kv_heads: int) -> Look:
    """Make attention of prompts on a CPU, for rows whose new tokens begin at ``starts``.

    Each block of :data:`QUERY_BLOCK` positions is one fused call over the columns up to the block's end, in which a
    position has the same place whatever else is computed along with it.
    """
    rows_by_start: dict[int, list[int]] = {}
    for row, start in enumerate(starts):
        rows_by_start.setdefault(start, []).append(row)

    def look(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values, seen = keys.to(queries.dtype), values.to(queries.dtype), torch.empty_like(queries)
        for start, rows in rows_by_start.items():
            own = slice(None) if len(rows) == len(queries) else rows
            held = queries[own], keys[own], values[own]
            seen[own] = torch.cat([_attend_block(block, start, *held) for block in _blocks(start, queries.shape[1])], 1)
        return seen

    def _attend_block(block: int, start: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        first, end = block * QUERY_BLOCK, (block + 1) * QUERY_BLOCK
        begin, stop = max(first, start), min(end, start + queries.shape[1])
        padded = queries.new_zeros(len(queries), QUERY_BLOCK, *queries.shape[2:])
        padded[:, begin - first : stop - first] = queries[:, begin - start : stop - start]
        hidden = torch.ones(QUERY_BLOCK, end, dtype=torch.bool).triu(first + 1)
        mask = torch.zeros(QUERY_BLOCK, end, dtype=queries.dtype).masked_fill_(hidden, -math.inf)
        attended = scaled_dot_product_attention(
            padded.transpose(1, 2),
            keys[:, :, :end],
            values[:, :, :end],
            mask,
            enable_gqa=queries.shape[2] != kv_heads,
        ).transpose(1, 2)
        return attended[:, begin - first : stop - first]

    return look


def look_by_columns(mask: Tensor, rows: int, kv_heads: int) -> Look:
    """Make attention of one new token per row on a CPU: batched products over blocks of columns.

    The fused kernel starts anew for every row and head, which over few columns takes longer than attention. ``mask``
    (rows or 1, 1, 1, columns) is -inf at columns to hide; their number is a multiple of :data:`COLUMN_BLOCK`.
    """
    hidden = mask.expand(rows, kv_heads, -1, -1).flatten(0, 1).contiguous()

    def look(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        grouped = queries.reshape(len(keys) * kv_heads, -1, queries.shape[-1])
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        scores = grouped.shape[1] * keys.shape[1]
        heads = max(1, min(CONVERTED_NUMBERS // keys[0].numel(), (SERIAL_NUMBERS - 1) // scores))
        if heads >= len(keys):
            return _attend_columns(hidden, grouped, keys, values).view_as(queries)
        parts = (torch.split(part, heads) for part in (hidden, grouped, keys, values))
        return torch.cat([_attend_columns(*part) for part in zip(*parts, strict=True)]).view_as(queries)

    return look


def _attend_columns(hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend (h, g, d) over (h, columns, d); ``hidden`` (h, 1, columns) is -inf where hidden, else 0."""
    heads, group, width = queries.shape
    blocks = keys.shape[1] // COLUMN_BLOCK
    keys, values = (part.to(queries.dtype).reshape(-1, COLUMN_BLOCK, width) for part in (keys, values))
    repeated = queries[:, None].expand(-1, blocks, -1, -1).reshape(-1, group, width)
    scores = torch.baddbmm(hidden.view(-1, 1, COLUMN_BLOCK), repeated, keys.transpose(1, 2), alpha=1 / math.sqrt(width))
    by_head = scores.view(heads, blocks, group, COLUMN_BLOCK)
    weights = by_head.sub_(by_head.amax((1, 3), keepdim=True)).exp_()
    total = _fold(weights.sum(-1))
    return _fold(torch.bmm(scores, values).view(heads, blocks, group, width)) / total[..., None]


def _fold(parts: Tensor) -> Tensor:
    """Add up (h, blocks, ...) over blocks, by pairs of neighbours: zeros after the last change nothing."""
    while (blocks := parts.shape[1]) > 1:
        pairs = parts[:, 0 : blocks - 1 : 2] + parts[:, 1::2]
        parts = torch.cat([pairs, parts[:, -1:]], 1) if blocks % 2 else pairs
    return parts[:, 0]


def _blocks(start: int, width: int) -> range:
    return range(start // QUERY_BLOCK, -(-(start + width) // QUERY_BLOCK))
