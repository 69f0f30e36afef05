"""A smaller ARM guides a bigger base: streams are grouped by the model that reads them.

The ARM's model runs two streams of a guided request, without the adapter (the reference) and with it, because the
reference form compares the ARM with its own backbone. Prompts may differ (each model has its own chat template); the
tokens after them are the same, so both models use the same token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from armature.inference.runner import ModelRunner, Prefill, Read, single_rows, staying
from armature.inference.stream import ModelName, Stream

Parts = dict[ModelName, Prefill[Any]]


class GroupedRunner:
    """Implements :class:`armature.inference.runner.ModelRunner` over one runner per model."""

    combines = False
    """Two models have two heads: a combination of hidden states means nothing."""

    def __init__(self, runners: Mapping[ModelName, ModelRunner]) -> None:
        self._runners = runners
        self._models: list[ModelName] = []

    def __len__(self) -> int:
        """R, the rows of all models."""
        return len(self._models)

    def prefill(self, streams: Sequence[Stream], *, every_position: bool = False) -> Prefill[Parts]:
        """Begin with new streams, each on its own model; every position only of streams of one model."""
        parts = {
            name: runner.prefill(group, every_position=every_position)
            for name, runner in self._runners.items()
            if (group := [stream for stream in streams if stream.model == name])
        }
        return Prefill(streams, parts, max(part.remaining for part in parts.values()), every_position)

    def extend(self, prefill: Prefill[Parts], tokens: int) -> int:
        """Compute the next positions; models with prompts left share ``tokens`` equally."""
        parts = prefill.state
        pending = [name for name, part in parts.items() if part.remaining]
        computed = sum(self._runners[name].extend(parts[name], max(1, tokens // len(pending))) for name in pending)
        prefill.remaining = max(part.remaining for part in parts.values())
        prefill.newest = next(iter(parts.values())).newest
        if not prefill.remaining:
            logits = {name: part.logits for name, part in parts.items() if part.logits is not None}
            prefill.logits = _in_order(logits, [stream.model for stream in prefill.streams])
        return computed

    def join(self, prefill: Prefill[Parts]) -> None:
        """Move new streams into the rows of every model, or of none."""
        rows = {name: len(self._runners[name]) for name in prefill.state}
        try:
            for name, part in prefill.state.items():
                self._runners[name].join(part)
        except BaseException:
            self._restore(rows)
            raise
        self._models += [stream.model for stream in prefill.streams]

    def decode(self, tokens: torch.Tensor, reads: Sequence[Read] | None = None) -> torch.Tensor:
        """Feed every row its newest token; see :meth:`armature.inference.runner.ModelRunner.decode`."""
        wanted = range(len(self)) if reads is None else single_rows(reads)
        logits = {}
        for name in dict.fromkeys(self._models):
            rows = self._rows_of(name)
            place = {row: number for number, row in enumerate(rows)}
            own = [Read(place[row]) for row in wanted if row in place]
            logits[name] = self._runners[name].decode(tokens[rows], own)
        return _in_order(logits, [self._models[row] for row in wanted])

    def evict(self, rows: Sequence[int]) -> None:
        """Free these rows in the models that hold them."""
        gone = set(rows)
        for name, runner in self._runners.items():
            runner.evict([number for number, row in enumerate(self._rows_of(name)) if row in gone])
        self._models = [self._models[row] for row in staying(len(self), rows)]

    def clear(self) -> None:
        """Free all rows of all models."""
        self._models = []
        for runner in self._runners.values():
            runner.clear()

    def _restore(self, rows: Mapping[ModelName, int]) -> None:
        """Free what a failed join added to each model's ``rows``; if that fails too, all rows."""
        try:
            for name, before in rows.items():
                self._runners[name].evict(range(before, len(self._runners[name])))
        except BaseException:
            self.clear()
            raise

    def _rows_of(self, name: ModelName) -> list[int]:
        return [row for row, model in enumerate(self._models) if model == name]


def _in_order(logits: Mapping[ModelName, torch.Tensor], models: Sequence[ModelName]) -> torch.Tensor:
    """Rows of all models (n, V) in the order of ``models``, each of which names the next row of its model."""
    names, tables = list(logits), list(logits.values())
    if len(tables) == 1:
        return tables[0]
    order = sorted(range(len(models)), key=lambda row: names.index(models[row]))
    joined = torch.cat([table.float() for table in tables])
    return torch.empty_like(joined).index_copy_(0, torch.tensor(order, device=joined.device), joined)
