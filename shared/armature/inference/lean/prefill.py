"""Prompts of new requests on the lean back end, computed piece by piece in a cache of their own.

What a prefix cache knows of a prompt is not computed again. The safe stream's part does not depend on the preference;
where it is known and the ARM stream's is not, the ARM rows catch up alone, from the hidden states at the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from armature.inference.lean.kv_cache import Attend, KvCache
from armature.inference.lean.model import LeanModel, Streams
from armature.inference.lean.readout import arm_index
from armature.inference.prefix_cache import Block, CachedPrompt, PrefixCache, block_columns, look_up_row
from armature.inference.runner import RowRequest, TwinLogits


class LeanPrefill:
    """Implements :class:`armature.inference.runner.Prefill`.

    Rows 0 to n - 1 of the caches are the safe streams of the n requests, those after them the ARM streams of the
    ``guided`` ones. All rows advance by the same columns, each from where its cached prefix ends; one whose prompt has
    ended computes padding, whose keys and values are 0: nobody reads it, but what is hidden must be some number.
    """

    def __init__(
        self, model: LeanModel, requests: Sequence[RowRequest], vocab_size: int | None, prefixes: PrefixCache | None
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._prefixes = prefixes
        self.lengths = [len(request.prompt) for request in requests]
        """Of the prompts."""
        self.cores = [_mix(model, request.preference) for request in requests]
        """Of each request's preference (C,), if it is guided."""
        self.guided = [index for index, cores in enumerate(self.cores) if cores is not None]
        self.lower, self.upper = model.new_caches()
        self._streams = Streams.of(model, self.guided, self.cores)
        self._cached = _look_up_all(prefixes, requests, self.guided)
        starts = [cached.length for cached in self._cached]
        safe, arm = starts[: len(requests)], starts[len(requests) :]
        branched = [safe[index] for index in self.guided]
        self._behind = _Run(arm, branched)
        self._rest = _Run(safe + branched, self.lengths + [self.lengths[index] for index in self.guided])
        room = max(self._behind.end, self._rest.end)
        self._tokens = self._tensor([[*request.prompt, *[0] * (room - len(request.prompt))] for request in requests])
        self._trunk = model.new_hidden(len(requests), room)
        """Hidden states at the split, which the ARM rows branch from."""
        self._ends: dict[int, Tensor] = {}
        self._every = requests[0].every_position
        self._newest: Tensor | None = None
        self._recall()

    @property
    def remaining(self) -> int:
        """How many columns are still to be computed."""
        return self._behind.remaining + self._rest.remaining

    @property
    def logits(self) -> TwinLogits:
        """For the first new token of each request."""
        hidden = torch.stack([self._ends[row] for row in range(len(self._ends))])
        arm = arm_index([cores is not None for cores in self.cores], self._model.device)
        return twin_logits(self._model, hidden, len(self.lengths), arm, self._vocab_size)

    @property
    def newest(self) -> TwinLogits:
        """After each of the newest columns of the one request."""
        assert self._newest is not None, "nobody asked for every position"
        columns = self._newest.shape[1]
        arm = slice(-columns, None)
        return twin_logits(self._model, self._newest.flatten(0, 1), columns, arm, self._vocab_size)

    def advance(self, tokens: int) -> int:
        """Compute the next columns, together about so many tokens."""
        left = tokens
        for run, compute in ((self._behind, self._catch_up), (self._rest, self._extend)):
            if left > 0 and run.remaining:
                window = run.take(left)
                compute(window)
                left -= window.tokens
            if run.remaining:  # what comes next looks at all of it
                break
        if not self.remaining:
            self._keep()
        return tokens - left

    def _catch_up(self, window: _Window) -> None:
        """Positions that the safe streams have: the ARM rows alone."""
        first = len(self.lengths)
        attend = window.attend(self.upper, range(first, first + len(self.guided)), self._model.device)
        positions = window.positions(self._model.device)
        trunk = self._trunk[self._streams.parents[:, None], positions]
        self._model.upper(trunk, self._model.rotation(positions), self._streams.cores, attend)

    def _extend(self, window: _Window) -> None:
        """Positions that are new to all rows."""
        safe, device = window.first(len(self.lengths)), self._model.device
        positions = safe.positions(device)
        attend = safe.attend(self.lower, range(len(safe.starts)), device)
        rotation, rows = self._model.rotation(positions), torch.arange(len(safe.starts), device=device)[:, None]
        trunk = self._model.lower(self._tokens[rows, positions], rotation, attend)
        self._trunk[rows, positions] = trunk
        attend = window.attend(self.upper, range(len(window.starts)), device)
        hidden = self._model.upper(*self._streams.branch(trunk, rotation), self._streams.cores, attend)
        self._newest = hidden if self._every else None
        for row, index in enumerate([*range(len(self.lengths)), *self.guided]):
            if 0 <= (end := self.lengths[index] - 1 - window.starts[row]) < window.width:
                self._ends[row] = hidden[row, end]

    def _recall(self) -> None:
        """Put the cached blocks where they belong."""
        self.lower.reserve(len(self.lengths), self._rest.longest)
        self.upper.reserve(len(self._cached), self._rest.longest)
        for row, cached in enumerate(self._cached):
            for columns, block in zip(block_columns(len(cached.blocks)), cached.blocks, strict=True):
                self.upper.write(row, columns, block[0])
                if row < len(self.lengths):
                    self.lower.write(row, columns, block[1])
                    self._trunk[row, columns] = block[2]

    def _keep(self) -> None:
        """Leave what was computed to the prefix cache, but for prompts that overflow: hidden from what comes before,
        a token that does spoils that all the same."""
        if self._prefixes is not None:
            for row, cached in enumerate(self._cached):
                if self._ends[row].isfinite().all():
                    self._prefixes.put(cached.keys, partial(self._block, row))

    def _block(self, row: int, columns: slice) -> Block:
        upper = self.upper.read(row, columns)
        if row >= len(self.lengths):
            return (upper,)
        return upper, self.lower.read(row, columns), self._trunk[row, columns].clone()

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


@dataclass(frozen=True)
class _Window:
    """The next columns of some rows: ``width`` positions of each from its start on, padding from its end on."""

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
        """Of these rows of a cache, which gets room for them."""
        cache.reserve(rows.stop, max(self.starts) + self.width)
        lengths = torch.tensor(self.starts, device=device)
        attend = cache.extend(lengths, min(self.starts), max(self.starts), self.width, rows.start)
        if all(start + self.width <= end for start, end in zip(self.starts, self.ends, strict=True)):
            return attend
        positions = lengths[:, None] + torch.arange(self.width, device=device)
        return _without_padding(attend, positions >= torch.tensor(self.ends, device=device)[:, None])


def _without_padding(attend: Attend, padding: Tensor) -> Attend:
    """``padding`` (rows, T) marks new tokens that nobody may see."""
    hidden = padding[:, :, None, None]

    def attend_cleanly(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(layer, queries, keys.masked_fill(hidden, 0), values.masked_fill(hidden, 0))

    return attend_cleanly


class _Run:
    """Columns that rows compute side by side, as many of each: from its own start on, the longest up to its end."""

    def __init__(self, starts: list[int], ends: list[int]) -> None:
        self._starts = starts
        self._ends = ends
        self._width = max((end - start for start, end in zip(starts, ends, strict=True)), default=0)
        self._done = 0
        self.longest = max(starts, default=0)
        self.end = self.longest + self._width

    @property
    def remaining(self) -> int:
        return self._width - self._done

    def take(self, tokens: int) -> _Window:
        """The next columns, about so many tokens."""
        width = min(self.remaining, max(1, tokens // len(self._starts)))
        window = _Window([start + self._done for start in self._starts], self._ends, width)
        self._done += width
        return window


def twin_logits(
    model: LeanModel, hidden: Tensor, requests: int, arm: Tensor | slice, vocab_size: int | None
) -> TwinLogits:
    """``hidden`` (rows, hidden) are the safe streams of the requests, then ARM streams; ``arm`` is each request's."""
    logits = model.read(model.normed(hidden))[:, :vocab_size]
    return TwinLogits(logits[:requests], logits[arm])


def _look_up_all(
    prefixes: PrefixCache | None, requests: Sequence[RowRequest], guided: Sequence[int]
) -> list[CachedPrompt]:
    """Of every row; an ARM row's as far as its safe row's."""
    safe = [look_up_row(prefixes, request, None) for request in requests]
    arm = [look_up_row(prefixes, requests[index], requests[index].preference, safe[index].length) for index in guided]
    return safe + arm


def _mix(model: LeanModel, preference: Sequence[float] | None) -> Tensor | None:
    if preference is None:
        return None
    return model.mix(torch.tensor([preference], dtype=torch.float32, device=model.device))[0]
