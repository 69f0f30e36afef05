"""Keys and values of the running rows: one buffer, written in place, that grows by doubling.

A row's positions begin at column 0; what lies past its length is garbage that the mask hides. On a CPU keys and values
are float32 whatever the model is: measured there, attention of one token over
bfloat16 keys takes 1.2 to 1.5 times as long with three queries to a key, 4 to 6 times with one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from armature.modeling.lean.architecture import Architecture
from armature.modeling.lean.row_table import Move

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: its number, queries (rows, T, heads, d), keys and values (rows, T, kv_heads, d) -> the
queries' shape. Keeps the keys and values."""

_LEAST_COLUMNS = 64


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In what precision a model of this dtype attends."""
    return torch.float32 if device.type == "cpu" else dtype


class KvCache:
    """The buffer (layers, 2, rows, kv_heads, T, d) of a run of layers, the first of them number ``first``."""

    def __init__(self, architecture: Architecture, first: int, layers: int, like: Tensor) -> None:
        self._first = first
        heads, width = architecture.kv_heads, architecture.head_width
        dtype = attention_dtype(like.device, like.dtype)
        self._buffer = torch.zeros(layers, 2, 0, heads, 0, width, dtype=dtype, device=like.device)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of such a length; what is there stays."""
        held_rows, held_length = self._buffer.shape[2], self._buffer.shape[4]
        if rows <= held_rows and length <= held_length:
            return
        shape = list(self._buffer.shape)
        shape[2] = held_rows if rows <= held_rows else max(rows, 2 * held_rows)
        shape[4] = held_length if length <= held_length else max(length, 2 * held_length, _LEAST_COLUMNS)
        grown = self._buffer.new_zeros(shape)
        grown[:, :, :held_rows, :, :held_length] = self._buffer
        self._buffer = grown

    def clear(self) -> None:
        """Give the memory back."""
        self._buffer = self._buffer[:, :, :0, :, :0].clone()

    def move(self, moves: Sequence[Move], length: int) -> None:
        """Copy rows, as far as their first ``length`` positions."""
        if moves:
            sources, targets = (list(rows) for rows in zip(*moves, strict=True))
            self._buffer[:, :, targets, :, :length] = self._buffer[:, :, sources, :, :length]

    def prefill(self, rows: Tensor) -> Attend:
        """Attention of new rows (their numbers) among their own tokens, from position 0."""

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            for held, new in zip(self._buffer[layer - self._first], (keys, values), strict=True):
                held[rows, :, : keys.shape[2]] = new
            is_grouped = queries.shape[2] != keys.shape[1]
            return scaled_dot_product_attention(
                queries.transpose(1, 2), keys, values, is_causal=True, enable_gqa=is_grouped
            ).transpose(1, 2)

        return attend

    def step(self, lengths: Tensor, shortest: int, longest: int) -> Attend:
        """Attention of one new token in each of the first rows, at position ``lengths`` (rows,)."""
        rows = len(lengths)
        where: tuple[Tensor | slice, ...] = (torch.arange(rows, device=lengths.device), slice(None), lengths)
        mask = None
        if shortest == longest:
            where = (slice(rows), slice(None), slice(longest, longest + 1))
        else:
            hidden = torch.arange(longest + 1, device=lengths.device) > lengths[:, None]
            mask = torch.zeros_like(hidden, dtype=self._buffer.dtype).masked_fill_(hidden, -math.inf)[:, None, None]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            held = self._buffer[layer - self._first]
            for kept, new in zip(held, (keys, values), strict=True):
                kept[where] = new.transpose(1, 2) if mask is None else new[:, 0]
            # queries that share a key-value head stand side by side, as if they were tokens
            grouped = queries.reshape(rows, keys.shape[2], -1, keys.shape[3])
            seen = held[:, :rows, :, : longest + 1]
            return scaled_dot_product_attention(grouped, seen[0], seen[1], attn_mask=mask).view_as(queries)

        return attend
