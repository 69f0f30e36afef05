"""A step at fixed shapes and addresses, which a CUDA graph can repeat.

Rows are padded to the next power of two and columns to a bucket; both are there anyway, as the caches reserve them.
Padding rows write into rows that nobody owns and read from them. All that differs between requests and steps is data:
tokens, lengths, who branches from whom, and cores of every row, which are zero where it has no ARM and for padding.
So a shape is recorded once, and joins, leaves and preferences change nothing of it. When buffers move, as they must to
grow, all shapes are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from armature.inference.kv_memory import row_room
from armature.inference.lean.graph_cache import Capture, Replays
from armature.inference.lean.layer import Rotation
from armature.inference.lean.model import LeanModel
from armature.inference.lean.step import Arrangement, Caches, index
from armature.inference.runner import Mixed, TwinLogits

_FEWEST_COLUMNS = 256
"""Attention over fewer is not worth a shape of its own."""


class _Shape(NamedTuple):
    """Of a step: safe rows below the split, rows above it, columns to attend to, and whether there are ARM rows."""

    safe: int
    rows: int
    columns: int
    guided: bool


@dataclass(frozen=True)
class _Inputs:
    """What differs between steps, in tensors that stay where they are; by row.

    ``tokens`` are those of the slots, ``feeds`` each safe row's slot, ``sources`` the safe row that each row branches
    from above the split (a safe row: from itself), ``lengths`` the cached positions, ``cores`` (rows, C).
    """

    tokens: Tensor
    feeds: Tensor
    sources: Tensor
    lengths: Tensor
    cores: Tensor

    @classmethod
    def of(cls, model: LeanModel, rows: int) -> _Inputs:
        tokens, feeds, sources, lengths = (index([0] * rows, model.device) for _ in range(4))
        cores = torch.zeros(rows, model.core_numbers, dtype=torch.float32, device=model.device)
        return cls(tokens, feeds, sources, lengths, cores)

    def __len__(self) -> int:
        return len(self.lengths)

    def fill(self, arrangement: Arrangement) -> None:
        """Put an arrangement in; padding rows become new, unguided ones of slot 0."""
        safe, rows = len(arrangement.feeds), len(arrangement.lengths)
        _put(self.feeds, arrangement.feeds)
        _put(self.sources, [*range(safe), *arrangement.parents])
        _put(self.lengths, arrangement.lengths)
        self.cores.zero_()
        if arrangement.cores:
            self.cores[safe:rows] = torch.stack(list(arrangement.cores))


class StaticStep:
    """Implements :class:`armature.inference.lean.step.Step`. Keeps its memory between two batches, where it is.

    Args:
        model: The model.
        caches: Keys and values of its rows.
        vocab_size: Logits past it are dropped.
        capture: How a shape is recorded.
    """

    mixes = False
    """Who wants what would be one more shape, and a GPU reads the head once for any number of rows."""

    def __init__(self, model: LeanModel, caches: Caches, vocab_size: int | None, capture: Capture) -> None:
        self._model = model
        self._caches = caches
        self._vocab_size = vocab_size
        self._replays = Replays(capture)
        self._inputs = _Inputs.of(model, 0)
        self._allocations = self._count_allocations()
        self._rows = 0
        self._is_guided = False
        self._safe_rows = self._arm_rows = index([], model.device)

    @torch.inference_mode()
    def arrange(self, arrangement: Arrangement) -> None:
        """Fill the inputs, which move only if there are more rows than ever."""
        self._rows, self._is_guided = len(arrangement.lengths), bool(arrangement.parents)
        if self._rows > len(self._inputs):
            self._inputs = _Inputs.of(self._model, row_room(self._rows))
            self._replays.clear()
        self._inputs.fill(arrangement)
        both = zip(arrangement.safe_rows, arrangement.arm_rows, strict=True)
        self._safe_rows = index(arrangement.safe_rows, self._model.device)
        self._arm_rows = index([safe if arm is None else arm for safe, arm in both], self._model.device)

    def rest(self) -> None:
        """What is set aside for the caches stays theirs, so that what is recorded keeps its addresses."""

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, shortest: int, longest: int, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """See :class:`armature.inference.lean.step.Step`; ``shortest`` makes no difference."""
        if self._allocations != (now := self._count_allocations()):
            self._allocations = now
            self._replays.clear()
        self._inputs.tokens[: len(tokens)] = tokens
        shape = _Shape(row_room(len(tokens)), row_room(self._rows), self._columns(longest + 1), self._is_guided)
        logits = self._replays.run(shape, partial(self._compute, shape))[:, : self._vocab_size]
        return TwinLogits(logits[self._safe_rows], logits[self._arm_rows])  # copies: the next replay writes over it

    def _columns(self, length: int) -> int:
        """The next power of two, as far as the caches reach."""
        room = min(self._caches.lower.columns, self._caches.upper.columns)
        return min(room, max(_FEWEST_COLUMNS, 1 << (length - 1).bit_length()))

    def _count_allocations(self) -> tuple[int, int]:
        return self._caches.lower.allocations, self._caches.upper.allocations

    def _compute(self, shape: _Shape) -> Tensor:
        """Logits of all rows (rows, V). Looks into no tensor."""
        model, inputs, last = self._model, self._inputs, shape.columns - 1
        lengths = inputs.lengths[: shape.rows]
        rotation = model.rotation(lengths[:, None])
        below = Rotation(*(part[: shape.safe] for part in rotation))
        tokens = inputs.tokens[inputs.feeds[: shape.safe]]
        attend = self._caches.lower.extend(lengths[: shape.safe], 0, last)
        x, cores = model.lower(tokens[:, None], below, attend), None
        if shape.guided:
            x, cores = x[inputs.sources[: shape.rows]], model.cores(inputs.cores[: shape.rows])
        hidden = model.upper(x, rotation, cores, self._caches.upper.extend(lengths, 0, last))
        lengths.add_(1)
        return model.read(model.normed(hidden[:, 0]))


def _put(buffer: Tensor, values: Sequence[int]) -> None:
    buffer.zero_()
    buffer[: len(values)] = index(values, buffer.device)
