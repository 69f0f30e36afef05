"""Key-value rows that join and leave: a left-padded cache whose rows come from requests of different ages.

Symbols: R rows, T cached positions (the longest row's), H key-value heads, d head width.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

_SPARE_COLUMNS = 32


class KvRows:
    """A key-value cache with the mask that says which of its positions are real.

    Every row ends at the last column, so that one step appends one column to all; shorter rows have padding on the
    left (trap T4). The cache is built without the model's config: each layer keeps the full length, and a model with
    sliding windows masks what lies outside, which keeps joining and trimming the same for all layers.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        """Start rows with nothing cached; ``mask`` (R, T) marks the positions that the first forward will fill."""
        self.mask = mask
        self.cache = Cache(layer_class_to_replicate=_RoomyLayer)

    @property
    def lengths(self) -> torch.Tensor:
        """Real positions per row (R,): the position id of a row's next token."""
        return self.mask.sum(-1)

    def grow(self) -> None:
        """Announce one more real position in every row, which the next forward fills."""
        self.mask = pad(self.mask, (0, 1), value=1)

    def append(self, other: KvRows) -> None:
        """Put the rows of ``other`` below these, left-padding whichever are shorter."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_pad_columns(self.mask, width, -1), _pad_columns(other.mask, width, -1)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if mine.is_initialized:
                mine.replace(
                    torch.cat([_pad_columns(mine.keys, width, -2), _pad_columns(theirs.keys, width, -2)]),
                    torch.cat([_pad_columns(mine.values, width, -2), _pad_columns(theirs.values, width, -2)]),
                )

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order, and cut the columns that are padding in all of them."""
        self.mask = self.mask[rows]
        cut = self.mask.shape[1] - int(self.lengths.max())
        self.mask = self.mask[:, cut:]
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.replace(layer.keys[rows, :, cut:], layer.values[rows, :, cut:])


class _RoomyLayer(DynamicLayer):
    """A growing layer that appends in place while its spare columns last, instead of copying all rows at each token."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new positions and return all of them."""
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
    """Token ids and mask (R, T) of prompts of different lengths. Padding is masked, so its id does not matter."""
    width = max(map(len, prompts))
    tokens = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _pad_columns(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Zeros on the left of dimension ``dim`` (-1: the last, -2: the one before) up to ``width``."""
    missing = width - tensor.shape[dim]
    return pad(tensor, (0, 0) * (-dim - 1) + (missing, 0)) if missing else tensor
