"""Keys and values of rows: a buffer for each layer, written in place, in the model's dtype.

A row's positions begin at column 0, and a mask hides the columns past its length. Masked positions must stay finite
(0 * NaN = NaN), so a reused row is zeroed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from armature.inference.kv_memory import column_room, row_room
from armature.inference.lean.architecture import Architecture
from armature.inference.lean.attention import attention_dtype, look_by_columns, look_by_position, look_fused
from armature.inference.lean.row_table import Move

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: its number, queries (rows, T, heads, d), keys and values (rows, T, kv_heads, d) -> the
queries' shape. Writes the keys and values into the cache."""


class KvCache:
    """The buffers (2, rows, kv_heads, T, d) of a run of layers, the first of them number ``first``."""

    def __init__(self, architecture: Architecture, first: int, layers: int, like: Tensor) -> None:
        self._first = first
        self._mask_dtype, self._device = attention_dtype(like.device, like.dtype), like.device
        self._kv_heads = architecture.kv_heads
        shape = 2, 0, architecture.kv_heads, 0, architecture.head_width
        self._buffers = [torch.zeros(shape, dtype=like.dtype, device=self._device) for _ in range(layers)]
        self._rows = self._used = 0
        """The number of rows, and of their columns that have ever been written."""
        self.columns = 0
        """Of every row."""
        self.allocations = 0
        """The number of times that the buffers have moved."""

    def reserve(self, rows: int, length: int) -> None:
        """Make room for ``rows`` of ``length`` positions and keep the content, copying layer after layer."""
        if rows <= self._rows and length <= self.columns:
            return
        held = slice(min(rows, self._rows)), slice(None), slice(min(length, self.columns))
        room_rows, room_columns = row_room(rows), column_room(length)
        self.allocations += 1  # first: if the next layer finds no memory, those before it have moved
        for layer, buffer in enumerate(self._buffers):
            grown = buffer.new_zeros(2, room_rows, buffer.shape[2], room_columns, buffer.shape[4])
            grown[:, *held] = buffer[:, *held]
            self._buffers[layer] = grown
        self._rows, self.columns, self._used = room_rows, room_columns, min(self._used, room_columns)

    def clear(self) -> None:
        """Free the memory."""
        self._rows = self.columns = self._used = 0
        self.allocations += 1
        self._buffers = [buffer[:, :0, :, :0].clone() for buffer in self._buffers]

    def move(self, moves: Sequence[Move]) -> None:
        """Copy whole rows."""
        if moves:
            sources, targets = torch.tensor(moves, device=self._device).T
            for buffer in self._buffers:
                buffer[:, targets, :, : self._used] = buffer[:, sources, :, : self._used]

    def adopt(self, other: KvCache, row: int, source: int, length: int) -> None:
        """Copy row ``source`` of another cache of these layers into ``row``, and zero the rest of it."""
        self._used = max(self._used, length)  # first: what is written of a row that fails is zeroed with its next owner
        for mine, theirs in zip(self._buffers, other._buffers, strict=True):
            mine[:, row, :, :length] = theirs[:, source, :, :length]
            mine[:, row, :, length : self._used] = 0

    def read(self, row: int, columns: slice) -> Tensor:
        """Copy a row's columns, (layers, 2, kv_heads, T, d); empty without layers."""
        parts = [buffer[:, row, :, columns] for buffer in self._buffers]
        return torch.stack(parts) if parts else torch.empty(0)

    def write(self, row: int, columns: slice, block: Tensor) -> None:
        """Write a copy made by :meth:`read`."""
        for buffer, part in zip(self._buffers, block, strict=True):
            buffer[:, row, :, columns] = part
        self._used = max(self._used, columns.stop)

    def extend(
        self, lengths: Tensor, shortest: int, longest: int, prompt_width: int | None = None, first: int = 0
    ) -> Attend:
        """Return the attention of new tokens of the rows from ``first`` on, after ``lengths`` (rows,).

        ``prompt_width`` is the number of each row's new tokens where they belong to prompts; None: one that answers.
        """
        width = prompt_width or 1
        rows, end = slice(first, first + len(lengths)), longest + width
        self._used = max(self._used, end)
        ragged = shortest < longest
        positions = lengths[:, None] + torch.arange(width, device=lengths.device) if ragged else None
        where = _places(positions, slice(longest, end), rows)
        if self._device.type != "cpu":
            columns, hides = end, positions is not None or (width > 1 and shortest > 0)
            mask = self._mask(positions, shortest, end, width) if hides else None
            look = look_fused(mask, self._kv_heads, width)
        elif prompt_width is None:
            columns = column_room(end)
            look = look_by_columns(self._mask(positions, shortest, columns, 1), len(lengths), self._kv_heads)
        else:
            columns, look = column_room(end), look_by_position(lengths.tolist(), self._kv_heads)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            buffer = self._buffers[layer - self._first]
            for kept, new in zip(buffer, (keys, values), strict=True):
                kept[where] = new.to(kept.dtype) if ragged else new.transpose(1, 2)
            return look(queries, *buffer[:, rows, :, :columns])

        return attend

    def _mask(self, positions: Tensor | None, shortest: int, end: int, width: int) -> Tensor:
        """-inf at the columns to hide, (rows or 1, 1, width, end)."""
        if positions is None:
            positions = torch.arange(shortest, shortest + width, device=self._device)[None]
        hidden = torch.arange(end, device=self._device) > positions[..., None]
        return torch.zeros_like(hidden, dtype=self._mask_dtype).masked_fill_(hidden, -math.inf)[:, None]


def _places(positions: Tensor | None, columns: slice, rows: slice) -> tuple[Tensor | slice, ...]:
    """Index new keys into (rows, kv_heads, T, d): equal columns in all rows, or positions (rows, width)."""
    if positions is None:
        return rows, slice(None), columns
    return torch.arange(rows.start, rows.stop, device=positions.device)[:, None], slice(None), positions
