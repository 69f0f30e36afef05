"""Keys and values of rows: a buffer for each layer, written in place.

A row's positions begin at column 0. A mask hides what lies past its length, but that may not be just anything: a
probability of zero times what is no number is none. So whoever takes a row over wipes what its last owner left.

Keys and values are kept in the model's dtype. A CPU attends in float32 whatever that is, and converts as it goes: from
memory half as much is read, and its products of one row in bfloat16 would round the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from armature.modeling.kv_memory import column_room, row_room
from armature.modeling.lean.architecture import Architecture
from armature.modeling.lean.row_table import Move

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: its number, queries (rows, T, heads, d), keys and values (rows, T, kv_heads, d) -> the
queries' shape. Keeps the keys and values."""
Look = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of one token: queries (rows, kv_heads, g, d) of g heads with common keys, keys and values (rows, kv_heads,
T, d) -> as many numbers as there are queries, in their order."""


_CONVERTED_NUMBERS = 1 << 20
"""Of keys, and as many of values, that are converted at once, or those of one head: more would not stay in a
processor's cache until they are looked at."""


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In what precision a model of this dtype attends."""
    return torch.float32 if device.type == "cpu" else dtype


class KvCache:
    """The buffers (2, rows, kv_heads, T, d) of a run of layers, the first of them number ``first``."""

    def __init__(self, architecture: Architecture, first: int, layers: int, like: Tensor) -> None:
        self._first = first
        self._mask_dtype, self._device = attention_dtype(like.device, like.dtype), like.device
        shape = 2, 0, architecture.kv_heads, 0, architecture.head_width
        self._buffers = [torch.zeros(shape, dtype=like.dtype, device=self._device) for _ in range(layers)]
        self._rows = self._used = 0
        """How many rows there are, and how many of their columns have ever been written."""
        self.columns = 0
        """Of every row."""
        self.allocations = 0
        """How often the buffers have moved."""

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of such a length; what is there stays. One layer after the other is copied."""
        if rows <= self._rows and length <= self.columns:
            return
        held = slice(min(rows, self._rows)), slice(None), slice(min(length, self.columns))
        room_rows, room_columns = row_room(rows), column_room(length)
        for layer, buffer in enumerate(self._buffers):
            grown = buffer.new_zeros(2, room_rows, buffer.shape[2], room_columns, buffer.shape[4])
            grown[:, *held] = buffer[:, *held]
            self._buffers[layer] = grown
        self._rows, self.columns, self._used = room_rows, room_columns, min(self._used, room_columns)
        self.allocations += 1

    def clear(self) -> None:
        """Give the memory back."""
        self._rows = self.columns = self._used = 0
        self.allocations += 1
        self._buffers = [buffer[:, :0, :, :0].clone() for buffer in self._buffers]

    def move(self, moves: Sequence[Move]) -> None:
        """Copy rows whole."""
        if moves:
            sources, targets = torch.tensor(moves, device=self._device).T
            for buffer in self._buffers:
                buffer[:, targets, :, : self._used] = buffer[:, sources, :, : self._used]

    def adopt(self, other: KvCache, row: int, source: int, length: int) -> None:
        """Copy a row of another cache of these layers into a row, and wipe what is left of whose it was."""
        for mine, theirs in zip(self._buffers, other._buffers, strict=True):
            mine[:, row, :, :length] = theirs[:, source, :, :length]
            mine[:, row, :, length : self._used] = 0
        self._used = max(self._used, length)

    def read(self, row: int, columns: slice) -> Tensor:
        """A copy of a row's columns, (layers, 2, kv_heads, T, d); empty without layers."""
        parts = [buffer[:, row, :, columns] for buffer in self._buffers]
        return torch.stack(parts) if parts else torch.empty(0)

    def write(self, row: int, columns: slice, block: Tensor) -> None:
        """Put back what was read."""
        for buffer, part in zip(self._buffers, block, strict=True):
            buffer[:, row, :, columns] = part
        self._used = max(self._used, columns.stop)

    def extend(self, lengths: Tensor, shortest: int, longest: int, width: int = 1, first: int = 0) -> Attend:
        """Attention of ``width`` new tokens of each row from ``first`` on, after the ``lengths`` (rows,) it has."""
        rows, end = slice(first, first + len(lengths)), longest + width
        self._used = max(self._used, end)
        ragged = shortest < longest
        positions = lengths[:, None] + torch.arange(width, device=lengths.device) if ragged else None
        where = _places(positions, slice(longest, end), rows)
        mask = self._mask(positions, shortest, end, width)
        look = _LOOKS.get(self._device.type, _look_fused)(mask)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            buffer = self._buffers[layer - self._first]
            for kept, new in zip(buffer, (keys, values), strict=True):
                kept[where] = new.to(kept.dtype) if ragged else new.transpose(1, 2)
            keys, values = buffer[:, rows, :, :end]
            if width == 1:  # queries that share a key-value head stand side by side, as if they were tokens
                grouped = queries.reshape(len(keys), keys.shape[1], -1, keys.shape[3])
                return look(grouped, keys, values).view_as(queries)
            is_grouped = queries.shape[2] != keys.shape[1]
            keys, values = keys.to(queries.dtype), values.to(queries.dtype)
            return scaled_dot_product_attention(
                queries.transpose(1, 2), keys, values, mask, is_causal=mask is None, enable_gqa=is_grouped
            ).transpose(1, 2)

        return attend

    def _mask(self, positions: Tensor | None, shortest: int, end: int, width: int) -> Tensor | None:
        """-inf at what a new token must not see, (rows or 1, 1, width, end); None: what is there, causally."""
        if positions is None and (width == 1 or shortest == 0):
            return None
        if positions is None:
            positions = torch.arange(shortest, shortest + width, device=self._device)[None]
        hidden = torch.arange(end, device=self._device) > positions[..., None]
        return torch.zeros_like(hidden, dtype=self._mask_dtype).masked_fill_(hidden, -math.inf)[:, None]


def _look_fused(mask: Tensor | None) -> Look:
    return partial(scaled_dot_product_attention, attn_mask=mask)


def _look_by_products(mask: Tensor | None) -> Look:
    """On a CPU the fused kernel begins anew for every row and head, which over few columns takes longer than to attend;
    two batched products take all of them at once, or as many as a processor's cache has room for once converted."""

    def look(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows, heads = queries.shape[:2]
        hidden = queries.new_zeros(1, 1, 1) if mask is None else mask.expand(rows, heads, 1, -1).flatten(0, 1)
        queries, keys, values = (part.flatten(0, 1) for part in (queries, keys, values))
        if keys.dtype == queries.dtype or keys.numel() <= _CONVERTED_NUMBERS:
            return _look_at(hidden, queries, keys, values)
        heads = max(1, _CONVERTED_NUMBERS // keys[0].numel())
        parts = (torch.split(part, heads) for part in (hidden.expand(len(keys), 1, -1), queries, keys, values))
        return torch.cat([_look_at(*part) for part in zip(*parts, strict=True)])

    return look


def _look_at(hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of some heads: queries (h, g, d), keys and values (h, T, d), -inf at what is hidden (h or 1, 1, T or 1)."""
    keys, values = keys.to(queries.dtype), values.to(queries.dtype)
    scores = torch.baddbmm(hidden, queries, keys.transpose(1, 2), alpha=1 / math.sqrt(keys.shape[-1]))
    return torch.bmm(scores.softmax(-1), values)


_LOOKS: dict[str, Callable[[Tensor | None], Look]] = {"cpu": _look_by_products}
"""By the type of device."""


def _places(positions: Tensor | None, columns: slice, rows: slice) -> tuple[Tensor | slice, ...]:
    """Where new keys go in (rows, kv_heads, T, d): the same columns in all rows, or positions (rows, width)."""
    if positions is None:
        return rows, slice(None), columns
    return torch.arange(rows.start, rows.stop, device=positions.device)[:, None], slice(None), positions
