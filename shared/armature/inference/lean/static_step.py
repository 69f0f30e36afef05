"""A step at fixed shapes and addresses, which a CUDA graph can replay.

Rows are padded to the next power of two and columns to a bucket; both exist anyway, as the caches reserve them. Padding
rows write into rows without an owner and read from them. Everything that differs between requests and steps is data:
tokens, lengths, parents, and cores of every row, which are zero in trunk rows and padding. So a shape is recorded once,
and joins, evictions and preferences need no new recording. When buffers move to grow, all recordings are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from armature.inference.kv_memory import row_room
from armature.inference.lean.graph_cache import Capture, GraphCache
from armature.inference.lean.layer import Rotation
from armature.inference.lean.model import LeanModel
from armature.inference.lean.step import Arrangement, Caches, index
from armature.inference.runner import Read, single_rows

_FEWEST_COLUMNS = 256
"""Attention over fewer columns is not worth a shape of its own."""


class _Shape(NamedTuple):
    """A step's rows below the split, rows above it, columns to attend to, and whether it has branches."""

    trunk: int
    rows: int
    columns: int
    branches: bool


@dataclass(frozen=True)
class _Inputs:
    """Whatever differs between steps, in tensors that stay at their addresses; by row.

    ``tokens`` are in the caller's order, ``feeds`` maps each trunk row to one of them, ``sources`` is the trunk row
    that each row continues above the split (a trunk row: itself), ``lengths`` the cached positions, ``cores`` (rows,
    C).
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
        """Write ``arrangement`` into the tensors; padding rows become new trunk rows fed the first token."""
        trunk, rows = len(arrangement.feeds), len(arrangement.lengths)
        _put(self.feeds, arrangement.feeds)
        _put(self.sources, [*range(trunk), *arrangement.parents])
        _put(self.lengths, arrangement.lengths)
        self.cores.zero_()
        if arrangement.cores:
            self.cores[trunk:rows] = torch.stack(list(arrangement.cores))


class StaticStep:
    """A :class:`~armature.inference.lean.step.Step` that keeps memory and addresses even without rows.

    Args:
        model: The model.
        caches: Keys and values of its rows.
        vocab_size: Logits past it are dropped.
        capture: How a shape is recorded.
    """

    combines = False
    """Each set of reads would be one more shape, and a GPU reads the head once for any number of rows."""

    def __init__(self, model: LeanModel, caches: Caches, vocab_size: int | None, capture: Capture) -> None:
        self._model = model
        self._caches = caches
        self._vocab_size = vocab_size
        self._graphs = GraphCache(capture)
        self._inputs = _Inputs.of(model, 0)
        self._allocations = self._count_allocations()
        self._trunk = 0
        self._rows: Sequence[int] = ()

    @torch.inference_mode()
    def arrange(self, arrangement: Arrangement) -> None:
        """Fill the inputs, which move only if there are more rows than ever before."""
        self._trunk, self._rows = len(arrangement.feeds), arrangement.rows
        if len(self._rows) > len(self._inputs):
            self._inputs = _Inputs.of(self._model, row_room(len(self._rows)))
            self._graphs.clear()
        self._inputs.fill(arrangement)

    def rest(self) -> None:
        """Keep the caches' memory, so that recordings keep their addresses."""

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, shortest: int, longest: int, reads: Sequence[Read] | None) -> Tensor:
        """Return logits after each stream's newest token; ``shortest`` makes no difference."""
        wanted = self._rows if reads is None else [self._rows[row] for row in single_rows(reads)]
        if self._allocations != (now := self._count_allocations()):
            self._allocations = now
            self._graphs.clear()
        self._inputs.tokens[: len(tokens)] = tokens
        rows = len(self._rows)
        shape = _Shape(row_room(self._trunk), row_room(rows), self._columns(longest + 1), rows > self._trunk)
        logits = self._graphs.run(shape, partial(self._compute, shape))[:, : self._vocab_size]
        return logits[index(wanted, logits.device)]  # a copy: the next replay writes over the original

    def _columns(self, length: int) -> int:
        """Round up to a power of two, as far as the caches reach."""
        room = min(self._caches.lower.columns, self._caches.upper.columns)
        return min(room, max(_FEWEST_COLUMNS, 1 << (length - 1).bit_length()))

    def _count_allocations(self) -> tuple[int, int]:
        return self._caches.lower.allocations, self._caches.upper.allocations

    def _compute(self, shape: _Shape) -> Tensor:
        """Logits of all rows (rows, V). Never looks at a value in a tensor: a recording could not repeat that."""
        model, inputs, last = self._model, self._inputs, shape.columns - 1
        lengths = inputs.lengths[: shape.rows]
        rotation = model.rotation(lengths[:, None])
        below = Rotation(*(part[: shape.trunk] for part in rotation))
        tokens = inputs.tokens[inputs.feeds[: shape.trunk]]
        attend = self._caches.lower.extend(lengths[: shape.trunk], 0, last)
        x, cores = model.lower(tokens[:, None], below, attend), None
        if shape.branches:
            x, cores = x[inputs.sources[: shape.rows]], model.cores(inputs.cores[: shape.rows])
        hidden = model.upper(x, rotation, cores, self._caches.upper.extend(lengths, 0, last))
        lengths.add_(1)
        return model.read(model.normed(hidden[:, 0]))


def _put(buffer: Tensor, values: Sequence[int]) -> None:
    buffer.zero_()
    buffer[: len(values)] = index(values, buffer.device)
