"""Key-value rows that join and leave: a left-padded cache of rows with different lengths.

Symbols: R rows, T cached positions (the longest row's), H key-value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import pad
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from armature.inference.prefix_cache import Block

_SPARE_COLUMNS = 32

_MOVING_ROPE = frozenset({"dynamic", "longrope"})


def moves_frequencies(config: PretrainedConfig) -> bool:
    """Tell whether rotary frequencies, and keys with them, depend on the length of the sequence."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [one for one in rope.values() if isinstance(one, dict)]
    return any(one.get("rope_type") in _MOVING_ROPE for one in [rope, *by_layer])


def keeps_positions(config: PretrainedConfig) -> bool:
    """Tell whether a model's cache is keys and values by position, which depend on nothing after them."""
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    return plain and not moves_frequencies(config)


class KvRows:
    """A key-value cache with the mask of its real positions.

    Every row ends at the last column, so that one step appends one column to all; shorter rows have padding on the
    left (docs/traps.md, 4), whose keys and values are 0: masked positions must be finite (0 * NaN = NaN). The cache is
    built without the model's config: each layer keeps the full length, and a model with sliding windows masks the
    positions outside, so that joining and trimming are the same for all layers.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        """Start rows with nothing cached; ``mask`` (R, T) marks positions that the first forward pass fills."""
        self.mask = mask
        self._padding = _Padding()
        self.cache = Cache(layer_class_to_replicate=partial(_RoomyLayer, self._padding))

    @property
    def lengths(self) -> torch.Tensor:
        """Real positions per row (R,): the position id of a row's next token."""
        return self.mask.sum(-1)

    @property
    def is_whole(self) -> bool:
        """Whether layers hold keys and values of all positions: a model may keep its state elsewhere."""
        held = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return bool(held) and all(part is not None and part.shape[2] == self.mask.shape[1] for part in held)

    @property
    def is_sound(self) -> list[bool]:
        """Whether each row's newest position is finite: only if all positions that it attends to are."""
        newest: torch.Tensor = self.cache.layers[-1].values[:, :, -1]
        return newest.isfinite().flatten(1).all(-1).tolist()

    def grow(self, columns: torch.Tensor | None = None) -> None:
        """Announce new positions, which the next forward pass fills.

        Args:
            columns: 1 where they are real (R, new); None: one position of each row.
        """
        self._padding.new = None
        if columns is None:
            self.mask = pad(self.mask, (0, 1), value=1)
            return
        self.mask = torch.cat([self.mask, columns], dim=1)
        if (padding := columns == 0).any():
            self._padding.new = padding[:, None, :, None]

    def recall(self, known: Sequence[Sequence[Block]], mask: torch.Tensor) -> None:
        """Fill an empty cache's first columns with copies by :meth:`read`, from each row's first position on.

        Args:
            known: Each row's blocks, for at least as many positions as it has there.
            mask: The mask of those columns (R, T).
        """
        self.mask = mask
        columns, lengths = mask.shape[1], self.lengths.tolist()
        template = next(blocks[0] for blocks in known if blocks)
        tables = [part.new_zeros(len(known), part.shape[0], columns, part.shape[2]) for part in template]
        for row, (blocks, length) in enumerate(zip(known, lengths, strict=True)):
            for number, table in enumerate(tables if length else []):
                positions = torch.cat([block[number] for block in blocks], dim=1)
                table[row, :, columns - length :] = positions[:, :length]
        for layer, (keys, values) in enumerate(zip(tables[::2], tables[1::2], strict=True)):
            self.cache.update(keys, values, layer)

    def read(self, row: int, positions: slice) -> Block:
        """Copy a row's real positions: each layer's keys and values, (H, positions, d) each."""
        first = self.mask.shape[1] - int(self.lengths[row])
        columns = slice(first + positions.start, first + positions.stop)
        return tuple(
            part[row, :, columns].clone() for layer in self.cache.layers for part in (layer.keys, layer.values)
        )

    def append(self, other: KvRows) -> None:
        """Append the rows of ``other``, left-padding shorter ones; if that raises, these rows are as before."""
        rows, columns = self.mask.shape
        width = max(columns, other.mask.shape[1])
        try:
            for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
                if mine.is_initialized:
                    mine.replace(
                        torch.cat([_pad_columns(mine.keys, width, -2), _pad_columns(theirs.keys, width, -2)]),
                        torch.cat([_pad_columns(mine.values, width, -2), _pad_columns(theirs.values, width, -2)]),
                    )
            self.mask = torch.cat([_pad_columns(self.mask, width, -1), _pad_columns(other.mask, width, -1)])
        except BaseException:  # no memory for a copy of the next layer
            for layer in self.cache.layers:
                if layer.is_initialized:
                    layer.replace(layer.keys[:rows, :, -columns:], layer.values[:rows, :, -columns:])
            raise

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order, and cut the columns that are padding in all of them."""
        self.mask = self.mask[rows]
        cut = self.mask.shape[1] - int(self.lengths.max())
        self.mask = self.mask[:, cut:]
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.replace(layer.keys[rows, :, cut:], layer.values[rows, :, cut:])


@dataclass
class _Padding:
    """The padding of the ``new`` columns, shared by all layers: (R, 1, T, 1) booleans."""

    new: torch.Tensor | None = None


class _RoomyLayer(DynamicLayer):
    """A layer that appends in place while spare columns last, instead of copying all rows at each token."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, padding: _Padding) -> None:
        super().__init__()
        self._padding = padding
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new positions and return all of them."""
        if (padding := self._padding.new) is not None:
            key_states, value_states = key_states.masked_fill(padding, 0), value_states.masked_fill(padding, 0)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.replace(key_states, value_states)
        else:
            self.keys = self._append("keys", self.keys, key_states)
            self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def replace(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold these tensors (R, H, T, d) from now on."""
        self.keys, self.values = keys, values
        self._rooms.clear()

    def _append(self, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        begin, end = held.shape[2], held.shape[2] + new.shape[2]
        room = self._rooms.get(name)
        if room is None or room.shape[2] < end:
            room = held.new_empty(*held.shape[:2], end + _SPARE_COLUMNS, held.shape[3])
            room[:, :, :begin] = held
            self._rooms[name] = room
        room[:, :, begin:end] = new
        return room[:, :, :end]


def left_pad(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left into token ids and mask (R, T); padding is masked, so its id has no effect."""
    width = max(map(len, prompts))
    tokens = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _pad_columns(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Pad dimension ``dim`` (-1: the last, -2: the one before) with zeros on the left up to ``width``."""
    missing = width - tensor.shape[dim]
    return pad(tensor, (0, 0) * (-dim - 1) + (missing, 0)) if missing else tensor
