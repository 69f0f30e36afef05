"""The running requests' rows on the lean back end: who stands where, what is cached, one step for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armature.modeling.lean.model import LeanModel, Streams
from armature.modeling.lean.row_table import RowTable
from armature.modeling.rows import SCORED_AT_ONCE, TwinLogits, check_preferences


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
    """

    def __init__(self, model: LeanModel, attributes: int = 0, vocab_size: int | None = None) -> None:
        self._model = model
        self._attributes = attributes
        self._vocab_size = vocab_size
        self._lower, self._upper = model.new_caches()
        self._table = RowTable()
        self._requests: dict[int, _Request] = {}
        self._layout = self._arrange()

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._table)

    def join(self, prompts: Sequence[Sequence[int]], weights: Sequence[Sequence[float] | None]) -> TwinLogits:
        """Prefill new requests and put them into the next slots; see :meth:`armature.modeling.rows.Rows.join`."""
        check_preferences(weights, self._attributes)
        before = len(self)
        try:
            self._seat(prompts, weights)
            return self._prefill(prompts, self._table.slots[before:])
        except Exception:
            self.keep(range(before))
            raise

    def step(self, tokens: Tensor) -> TwinLogits:
        """Feed each request's newest token (S,) and return the logits for the next one."""
        layout, safe = self._layout, len(self)
        lengths = [request.length for request in self._requests.values()]
        shortest, longest = min(lengths), max(lengths)
        self._reserve(safe, self._table.rows, longest + 1)
        attend = (
            self._lower.step(layout.lengths[:safe], shortest, longest),
            self._upper.step(layout.lengths, shortest, longest),
        )
        positions = layout.lengths[:safe, None]
        hidden = self._model.forward(tokens[layout.feeds][:, None], positions, layout.streams, attend)
        layout.lengths.add_(1)
        for request in self._requests.values():
            request.length += 1
        return self._logits(hidden[layout.order, 0], safe, layout.arm)

    def score(self, prompt: Sequence[int], weights: Sequence[float] | None) -> Iterator[TwinLogits]:
        """Logits after every position of a prompt; see :meth:`armature.modeling.rows.Rows.score`."""
        rows = LeanRows(self._model, self._attributes, self._vocab_size)  # others' rows stay as they are
        check_preferences([weights], self._attributes)
        rows._seat([prompt], [weights])
        hidden, _ = rows._run([prompt], rows._table.slots)
        for start in range(0, len(prompt), SCORED_AT_ONCE):
            piece = hidden[:, start : start + SCORED_AT_ONCE]
            count = piece.shape[1]
            yield rows._logits(piece.flatten(0, 1), count, slice(-count, None))

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

    def _seat(self, prompts: Sequence[Sequence[int]], weights: Sequence[Sequence[float] | None]) -> None:
        """Give new requests their cores, room and rows. What can fail comes before anything moves."""
        requests = [_Request(len(prompt), self._mix(weight)) for prompt, weight in zip(prompts, weights, strict=True)]
        guided = [request.cores is not None for request in requests]
        longest = max(request.length for request in [*self._requests.values(), *requests])
        self._reserve(len(self) + len(requests), self._table.rows + len(requests) + sum(guided), longest)
        self._upper.move(self._table.join(guided), longest)
        self._requests.update(zip(self._table.slots[-len(requests) :], requests, strict=True))
        self._layout = self._arrange()

    def _prefill(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> TwinLogits:
        """Run the prompts of new requests and look at their last positions."""
        hidden, guided = self._run(prompts, numbers)
        ends = self._tensor([len(prompts[index]) - 1 for index in [*range(len(prompts)), *guided]])
        rows = torch.arange(len(ends), device=self._model.device)
        return self._logits(hidden[rows, ends], len(prompts), self._arm_index(numbers))

    def _run(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Run the prompts of new requests, which own the last rows of both regions.

        Returns:
            Hidden states of the safe streams and then of the guided ones' ARM streams (rows, T, hidden), and the
            indices of the guided.
        """
        width = max(map(len, prompts))
        tokens = self._tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        guided = [index for index, number in enumerate(numbers) if self._requests[number].cores is not None]
        safe_rows = list(range(len(self) - len(prompts), len(self)))
        arm_rows = list(range(self._table.rows - len(guided), self._table.rows))
        attend = (
            self._lower.prefill(self._tensor(safe_rows)),
            self._upper.prefill(self._tensor(safe_rows + arm_rows)),
        )
        streams = self._streams(guided, [numbers[index] for index in guided])
        positions = torch.arange(width, device=self._model.device)[None]
        return self._model.forward(tokens, positions, streams, attend), guided

    def _arrange(self) -> _Layout:
        table = self._table
        arm_rows = [row for row in table.arm_rows if row is not None]
        slot_of = {number: slot for slot, number in enumerate(table.slots)}
        return _Layout(
            streams=self._streams(table.parents, table.arm),
            feeds=self._tensor([slot_of[number] for number in table.safe]),
            lengths=self._tensor([self._requests[number].length for number in [*table.safe, *table.arm]]),
            order=self._tensor(table.safe_rows + arm_rows),
            arm=self._arm_index(table.slots),
        )

    def _streams(self, parents: Sequence[int], owners: Iterable[int]) -> Streams:
        cores = [cores for owner in owners if (cores := self._requests[owner].cores) is not None]
        return Streams(self._tensor(parents), self._model.cores(torch.stack(cores)) if cores else None)

    def _arm_index(self, numbers: Sequence[int]) -> Tensor | slice:
        """Each request's ARM stream among its safe ones and, after them, those of the guided: slices where possible."""
        count = len(numbers)
        guided = [self._requests[number].cores is not None for number in numbers]
        if not any(guided):
            return slice(count)
        if all(guided):
            return slice(count, 2 * count)
        places = iter(range(count, 2 * count))
        return self._tensor([next(places) if is_guided else slot for slot, is_guided in enumerate(guided)])

    def _logits(self, hidden: Tensor, safe: int, arm: Tensor | slice) -> TwinLogits:
        """``hidden`` (rows, hidden): the safe streams of ``safe`` requests, then ARM streams."""
        logits = self._model.logits(hidden)[:, : self._vocab_size].float()
        return TwinLogits(logits[:safe], logits[arm])

    def _mix(self, weight: Sequence[float] | None) -> Tensor | None:
        return None if weight is None else self._model.mix(self._tensor([weight], torch.float32))[0]

    def _reserve(self, safe: int, rows: int, length: int) -> None:
        self._lower.reserve(safe, length)
        self._upper.reserve(rows, length)

    def _tensor(self, values: Sequence[object], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._model.device)
