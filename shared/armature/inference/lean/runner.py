"""The running requests' rows on the lean back end: who stands where, what is cached, one step for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from armature.inference.lean.cuda_graphs import CudaGraphs
from armature.inference.lean.dynamic_step import DynamicStep
from armature.inference.lean.model import LeanModel
from armature.inference.lean.prefill import LeanPrefill
from armature.inference.lean.row_table import RowTable
from armature.inference.lean.static_step import StaticStep
from armature.inference.lean.step import Arrangement, Caches, Step, StepFactory
from armature.inference.prefix_cache import PrefixCache
from armature.inference.runner import Mixed, Prefill, RowRequest, TwinLogits, check_preferences


def start_step(model: LeanModel, caches: Caches, vocab_size: int | None) -> Step:
    """The step that suits the model's device."""
    return _STEPS.get(model.device.type, DynamicStep)(model, caches, vocab_size)


def _start_graphs(model: LeanModel, caches: Caches, vocab_size: int | None) -> Step:
    return StaticStep(model, caches, vocab_size, CudaGraphs(model.device))


_STEPS: dict[str, StepFactory] = {"cuda": _start_graphs}
"""By the type of device; elsewhere a step has the shape of what there is."""


@dataclass
class _Request:
    """How many positions of a request are cached, and its cores (C,) if it is guided."""

    length: int
    cores: Tensor | None


class LeanRows:
    """Implements :class:`armature.inference.runner.Rows` on a :class:`LeanModel`.

    Args:
        model: The model; several sets of rows may share it.
        attributes: K, how many weights a preference has; 0 for a model without an adapter.
        vocab_size: Logits past it are dropped.
        prefixes: Computed beginnings of prompts, of this model alone; None: every prompt is computed whole.
        start: How the rows are stepped; by default what suits the model's device.
    """

    def __init__(
        self,
        model: LeanModel,
        attributes: int = 0,
        vocab_size: int | None = None,
        prefixes: PrefixCache | None = None,
        start: StepFactory = start_step,
    ) -> None:
        self._model = model
        self._attributes = attributes
        self._vocab_size = vocab_size
        self._prefixes = prefixes
        self._caches = Caches(*model.new_caches())
        self._step = start(model, self._caches, vocab_size)
        self._table = RowTable()
        self._requests: dict[int, _Request] = {}

    @property
    def mixes(self) -> bool:
        """See :attr:`armature.inference.runner.Rows.mixes`."""
        return self._step.mixes

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._table)

    def begin(self, requests: Sequence[RowRequest]) -> LeanPrefill:
        """New requests in a cache of their own; see :meth:`armature.inference.runner.Rows.begin`."""
        check_preferences(requests, self._attributes)
        return LeanPrefill(self._model, requests, self._vocab_size, self._prefixes)

    def join(self, prefill: Prefill) -> None:
        """Copy the caches of new requests into the next rows; what can fail comes before anything moves."""
        assert isinstance(prefill, LeanPrefill)
        requests = [_Request(length, cores) for length, cores in zip(prefill.lengths, prefill.cores, strict=True)]
        guided, new, (lower, upper) = prefill.guided, len(requests), (self._caches.lower, self._caches.upper)
        longest = max(request.length for request in [*self._requests.values(), *requests])
        self._caches.reserve(len(self) + new, self._table.rows + new + len(guided), longest)
        upper.move(self._table.join([request.cores is not None for request in requests]))
        safe, rows = len(self) - new, self._table.rows - len(guided)
        for row, length in enumerate(prefill.lengths):
            lower.adopt(prefill.lower, safe + row, row, length)
            upper.adopt(prefill.upper, safe + row, row, length)
        for row, index in enumerate(guided):
            upper.adopt(prefill.upper, rows + row, new + row, prefill.lengths[index])
        self._requests.update(zip(self._table.slots[-new:], requests, strict=True))
        self._step.arrange(self._arrangement())

    def step(self, tokens: Tensor, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """Feed each request's newest token (S,); see :meth:`armature.inference.runner.Rows.step`."""
        lengths = [request.length for request in self._requests.values()]
        shortest, longest = min(lengths), max(lengths)
        self._caches.reserve(len(self), self._table.rows, longest + 1)
        logits = self._step(tokens, shortest, longest, mixed)
        for request in self._requests.values():
            request.length += 1
        return logits

    def keep(self, slots: Sequence[int]) -> None:
        """Drop the rows of all requests but these, which move up in their order."""
        moves = self._table.keep(slots)
        self._requests = {number: self._requests[number] for number in self._table.slots}
        if not slots:
            self._step.rest()
            return
        self._caches.lower.move(moves.safe)
        self._caches.upper.move(moves.safe)
        self._caches.upper.move(moves.arm)
        self._step.arrange(self._arrangement())

    def _arrangement(self) -> Arrangement:
        table = self._table
        slot_of = {number: slot for slot, number in enumerate(table.slots)}
        return Arrangement(
            feeds=[slot_of[number] for number in table.safe],
            parents=table.parents,
            cores=[cores for number in table.arm if (cores := self._requests[number].cores) is not None],
            lengths=[self._requests[number].length for number in [*table.safe, *table.arm]],
            safe_rows=table.safe_rows,
            arm_rows=table.arm_rows,
        )
