"""The running requests' rows on the lean back end: who stands where, what is cached, one step for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armature.modeling.lean.model import LeanModel, Streams
from armature.modeling.lean.prefill import LeanPrefill, arm_index, twin_logits
from armature.modeling.lean.row_table import RowTable
from armature.modeling.prefix_cache import PrefixCache
from armature.modeling.rows import Prefill, RowRequest, TwinLogits, check_preferences


@dataclass
class _Request:
    """How many positions of a request are cached, and its cores (C,) if it is guided."""

    length: int
    cores: Tensor | None


@dataclass(frozen=True)
class _Layout:
    """Where everything stands until the next join or leave.

    ``feeds`` (S,) is the slot of each safe row, ``lengths`` (S + A,) what each row has cached, ``order`` (S + A,) the
    safe row of each slot and then the ARM rows of the guided ones, ``arm`` each slot's ARM stream in that order.
    """

    streams: Streams
    feeds: Tensor
    lengths: Tensor
    order: Tensor
    arm: Tensor | slice


class LeanRows:
    """Implements :class:`armature.modeling.rows.Rows` on a :class:`LeanModel`.

    Args:
        model: The model; several sets of rows may share it.
        attributes: K, how many weights a preference has; 0 for a model without an adapter.
        vocab_size: Logits past it are dropped.
        prefixes: Computed beginnings of prompts, of this model alone; None: every prompt is computed whole.
    """

    def __init__(
        self,
        model: LeanModel,
        attributes: int = 0,
        vocab_size: int | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._model = model
        self._attributes = attributes
        self._vocab_size = vocab_size
        self._prefixes = prefixes
        self._lower, self._upper = model.new_caches()
        self._table = RowTable()
        self._requests: dict[int, _Request] = {}
        self._layout = self._arrange()

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._table)

    def begin(self, requests: Sequence[RowRequest]) -> LeanPrefill:
        """New requests in a cache of their own; see :meth:`armature.modeling.rows.Rows.begin`."""
        check_preferences(requests, self._attributes)
        return LeanPrefill(self._model, requests, self._vocab_size, self._prefixes)

    def join(self, prefill: Prefill) -> None:
        """Copy the caches of new requests into the next rows; what can fail comes before anything moves."""
        assert isinstance(prefill, LeanPrefill)
        requests = [_Request(length, cores) for length, cores in zip(prefill.lengths, prefill.cores, strict=True)]
        guided, new = prefill.guided, len(requests)
        longest = max(request.length for request in [*self._requests.values(), *requests])
        self._reserve(len(self) + new, self._table.rows + new + len(guided), longest)
        self._upper.move(self._table.join([request.cores is not None for request in requests]), longest)
        safe, rows, width = len(self), self._table.rows, max(prefill.lengths)
        self._lower.adopt(prefill.lower, slice(safe - new, safe), slice(new), width)
        self._upper.adopt(prefill.upper, slice(safe - new, safe), slice(new), width)
        self._upper.adopt(prefill.upper, slice(rows - len(guided), rows), slice(new, new + len(guided)), width)
        self._requests.update(zip(self._table.slots[-new:], requests, strict=True))
        self._layout = self._arrange()

    def step(self, tokens: Tensor) -> TwinLogits:
        """Feed each request's newest token (S,) and return the logits for the next one."""
        layout, safe = self._layout, len(self)
        lengths = [request.length for request in self._requests.values()]
        shortest, longest = min(lengths), max(lengths)
        self._reserve(safe, self._table.rows, longest + 1)
        attend = (
            self._lower.extend(layout.lengths[:safe], shortest, longest),
            self._upper.extend(layout.lengths, shortest, longest),
        )
        positions = layout.lengths[:safe, None]
        hidden = self._model.forward(tokens[layout.feeds][:, None], positions, layout.streams, attend)
        layout.lengths.add_(1)
        for request in self._requests.values():
            request.length += 1
        return twin_logits(self._model, hidden[layout.order, 0], safe, layout.arm, self._vocab_size)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop the rows of all requests but these, which move up in their order."""
        longest = max((request.length for request in self._requests.values()), default=0)
        moves = self._table.keep(slots)
        self._requests = {number: self._requests[number] for number in self._table.slots}
        if slots:
            self._lower.move(moves.safe, longest)
            self._upper.move(moves.safe, longest)
            self._upper.move(moves.arm, longest)
        else:
            self._lower.clear()
            self._upper.clear()
        self._layout = self._arrange()

    def _arrange(self) -> _Layout:
        table = self._table
        arm_rows = [row for row in table.arm_rows if row is not None]
        slot_of = {number: slot for slot, number in enumerate(table.slots)}
        owners = [*table.safe, *table.arm]
        return _Layout(
            streams=Streams.of(self._model, table.parents, [self._requests[number].cores for number in table.arm]),
            feeds=self._tensor([slot_of[number] for number in table.safe]),
            lengths=self._tensor([self._requests[number].length for number in owners]),
            order=self._tensor(table.safe_rows + arm_rows),
            arm=arm_index(self._model, [row is not None for row in table.arm_rows]),
        )

    def _reserve(self, safe: int, rows: int, length: int) -> None:
        self._lower.reserve(safe, length)
        self._upper.reserve(rows, length)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)
