"""Prompts of new streams on the lean runner, computed piece by piece in caches of their own.

What the prefix cache has of a prompt is not computed again. A trunk stream's part does not depend on a preference;
where it is cached and its branch's is not, the branch rows catch up alone, from the hidden states at the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from armature.inference.lean.kv_cache import Attend, KvCache
from armature.inference.lean.model import Branches, LeanModel
from armature.inference.prefix_cache import Block, CachedPrompt, PrefixCache, block_columns, look_up
from armature.inference.stream import Stream


class LeanPrompts:
    """Prompts of new streams: rows 0 to n - 1 of the caches are the trunk, those after them the branches.

    All rows advance by the same columns, each from where its cached prefix ends. A row whose prompt has ended computes
    padding, whose keys and values are set to 0: they are masked, and masked positions must be finite (0 * NaN = NaN).
    """

    def __init__(self, model: LeanModel, streams: Sequence[Stream], prefixes: PrefixCache | None) -> None:
        self._model = model
        self._prefixes = prefixes
        self.streams = streams
        self.trunk = [stream for stream in streams if stream.parent is None]
        self.branches = [stream for stream in streams if stream.parent is not None]
        weights = {one: torch.tensor([one.preference], dtype=torch.float32) for one in self.branches}
        self.cores = {one: model.core_vector(row.to(model.device))[0] for one, row in weights.items()}
        """Of each branch's preference (C,)."""
        self.rows = {stream: row for row, stream in enumerate([*self.trunk, *self.branches])}
        self.lower, self.upper = model.new_caches()
        parents = [self.rows[stream.parent] for stream in self.branches if stream.parent is not None]
        self._branches = Branches.of(model, parents, list(self.cores.values()))
        self._cached = self._look_up_all()
        of_trunk, of_branches = ([self._cached[one].length for one in part] for part in (self.trunk, self.branches))
        of_parents = [of_trunk[parent] for parent in parents]
        self._behind = _Run(of_branches, of_parents)
        self._rest = _Run(of_trunk + of_parents, [len(stream.prompt) for stream in self.rows])
        room = max(self._behind.end, self._rest.end)
        padded = [[*one.prompt, *[0] * (room - len(one.prompt))] for one in self.trunk]
        self._tokens = torch.tensor(padded, dtype=torch.long, device=model.device)
        self._at_split = model.new_hidden(len(self.trunk), room)
        """Hidden states at the split, which the branches continue from."""
        self._ends: dict[int, Tensor] = {}
        self.newest: Tensor | None = None
        """Hidden states of the newest columns of all rows (rows, T, hidden), once there are any."""
        self._recall()

    @property
    def remaining(self) -> int:
        """The number of columns still to be computed."""
        return self._behind.remaining + self._rest.remaining

    @property
    def last_hidden(self) -> Tensor:
        """The hidden states after each prompt (rows, hidden), once nothing remains."""
        return torch.stack([self._ends[row] for row in range(len(self._ends))])

    def advance(self, tokens: int) -> int:
        """Compute the next columns, together about ``tokens`` tokens; returns the number computed."""
        left = tokens
        for run, compute in ((self._behind, self._catch_up), (self._rest, self._extend)):
            if left > 0 and run.remaining:
                window = run.take(left)
                compute(window)
                left -= window.tokens
            if run.remaining:  # the next run attends to all of this one
                break
        if not self.remaining:
            self._cache_prompts()
        return tokens - left

    def _catch_up(self, window: _Window) -> None:
        """Compute positions that the trunk has: the branch rows alone."""
        first = len(self.trunk)
        attend = window.attend(self.upper, range(first, first + len(self.branches)), self._model.device)
        positions = window.positions(self._model.device)
        trunk = self._at_split[self._branches.parents[:, None], positions]
        self._model.upper(trunk, self._model.rotation(positions), self._branches.cores, attend)

    def _extend(self, window: _Window) -> None:
        """Compute positions that are new to all rows."""
        trunk_window, device = window.first(len(self.trunk)), self._model.device
        positions = trunk_window.positions(device)
        attend = trunk_window.attend(self.lower, range(len(trunk_window.starts)), device)
        rotation, rows = self._model.rotation(positions), torch.arange(len(trunk_window.starts), device=device)[:, None]
        trunk = self._model.lower(self._tokens[rows, positions], rotation, attend)
        self._at_split[rows, positions] = trunk
        attend = window.attend(self.upper, range(len(window.starts)), device)
        hidden = self._model.upper(*self._branches.append(trunk, rotation), self._branches.cores, attend)
        self.newest = hidden
        for stream, row in self.rows.items():
            if 0 <= (end := len(stream.prompt) - 1 - window.starts[row]) < window.width:
                self._ends[row] = hidden[row, end]

    def _look_up_all(self) -> dict[Stream, CachedPrompt]:
        """Look up every row; a branch as far as its parent is cached."""
        cached = {stream: look_up(self._prefixes, stream) for stream in self.trunk}
        for stream in self.branches:
            assert stream.parent is not None
            cached[stream] = look_up(self._prefixes, stream, cached[stream.parent].length)
        return cached

    def _recall(self) -> None:
        """Write the cached blocks into the caches."""
        self.lower.reserve(len(self.trunk), self._rest.furthest_start)
        self.upper.reserve(len(self.rows), self._rest.furthest_start)
        for row, cached in enumerate(self._cached.values()):
            for columns, block in zip(block_columns(len(cached.blocks)), cached.blocks, strict=True):
                self.upper.write(row, columns, block[0])
                if row < len(self.trunk):
                    self.lower.write(row, columns, block[1])
                    self._at_split[row, columns] = block[2]

    def _cache_prompts(self) -> None:
        """Offer computed prompts to the prefix cache, except those that overflow.

        A masked position that is not finite spoils every row that attends past it.
        """
        if self._prefixes is not None:
            for row, cached in enumerate(self._cached.values()):
                if self._ends[row].isfinite().all():
                    self._prefixes.put(cached.keys, partial(self._block, row))

    def _block(self, row: int, columns: slice) -> Block:
        upper = self.upper.read(row, columns)
        if row >= len(self.trunk):
            return (upper,)
        return upper, self.lower.read(row, columns), self._at_split[row, columns].clone()


@dataclass(frozen=True)
class _Window:
    """The next columns of some rows: ``width`` positions from each start on, padding from each end on."""

    starts: list[int]
    ends: list[int]
    width: int

    @property
    def tokens(self) -> int:
        return len(self.starts) * self.width

    def first(self, rows: int) -> _Window:
        return _Window(self.starts[:rows], self.ends[:rows], self.width)

    def positions(self, device: torch.device) -> Tensor:
        """(rows, T), or (1, T) where all rows have the same."""
        starts = self.starts if len(set(self.starts)) > 1 else self.starts[:1]
        return torch.tensor(starts, device=device)[:, None] + torch.arange(self.width, device=device)

    def attend(self, cache: KvCache, rows: range, device: torch.device) -> Attend:
        """Attention of these rows of a cache, which is grown to hold them."""
        cache.reserve(rows.stop, max(self.starts) + self.width)
        lengths = torch.tensor(self.starts, device=device)
        attend = cache.extend(lengths, min(self.starts), max(self.starts), self.width, rows.start)
        if all(start + self.width <= end for start, end in zip(self.starts, self.ends, strict=True)):
            return attend
        positions = lengths[:, None] + torch.arange(self.width, device=device)
        padding = (positions >= torch.tensor(self.ends, device=device)[:, None])[:, :, None, None]
        return lambda layer, queries, keys, values: attend(
            layer, queries, keys.masked_fill(padding, 0), values.masked_fill(padding, 0)
        )


class _Run:
    """Columns that rows compute side by side, equally many: each from its start, until the longest ends."""

    def __init__(self, starts: list[int], ends: list[int]) -> None:
        self._starts = starts
        self._ends = ends
        self._width = max((end - start for start, end in zip(starts, ends, strict=True)), default=0)
        self._done = 0
        self.furthest_start = max(starts, default=0)
        self.end = self.furthest_start + self._width

    @property
    def remaining(self) -> int:
        return self._width - self._done

    def take(self, tokens: int) -> _Window:
        """The next columns, about ``tokens`` tokens."""
        width = min(self.remaining, max(1, tokens // len(self._starts)))
        window = _Window([start + self._done for start in self._starts], self._ends, width)
        self._done += width
        return window
