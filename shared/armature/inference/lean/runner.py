"""The lean runner: the rows of running streams, their caches, and one step for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from armature.inference.lean.cuda_graphs import CudaGraphs
from armature.inference.lean.dynamic_step import DynamicStep
from armature.inference.lean.model import LeanModel
from armature.inference.lean.prefill import LeanPrompts
from armature.inference.lean.row_table import Move, RowTable
from armature.inference.lean.static_step import StaticStep
from armature.inference.lean.step import Arrangement, Caches, StepFactory, index
from armature.inference.prefix_cache import PrefixCache
from armature.inference.runner import Prefill, Read, check_preferences
from armature.inference.stream import Stream

STEPS: dict[str, StepFactory] = {
    "cuda": lambda model, caches, vocab_size: StaticStep(model, caches, vocab_size, CudaGraphs(model.device))
}
"""The step that suits a type of device; on any other it has the shape of the rows (:class:`DynamicStep`)."""


class LeanRunner:
    """Implements :class:`armature.inference.runner.ModelRunner` on a :class:`LeanModel`.

    Args:
        model: The model; several runners may share it.
        attributes: K, the weights of a preference; 0 for a model without an adapter.
        vocab_size: Logits past it are dropped.
        prefixes: The model's own prefix cache; None: every prompt is computed whole.
        start: Makes the step; None: the one that suits the model's device.
    """

    def __init__(
        self,
        model: LeanModel,
        attributes: int = 0,
        vocab_size: int | None = None,
        prefixes: PrefixCache | None = None,
        start: StepFactory | None = None,
    ) -> None:
        self._model = model
        self._attributes = attributes
        self._vocab_size = vocab_size
        self._prefixes = prefixes
        self._caches = Caches(*model.new_caches())
        start = start or STEPS.get(model.device.type, DynamicStep)
        self._step = start(model, self._caches, vocab_size)
        self._table = RowTable()
        self._lengths: dict[Stream, int] = {}
        self._cores: dict[Stream, Tensor] = {}

    @property
    def combines(self) -> bool:
        """See :attr:`armature.inference.runner.ModelRunner.combines`."""
        return self._step.combines

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self._table)

    def prefill(self, streams: Sequence[Stream], *, every_position: bool = False) -> Prefill[LeanPrompts]:
        """Begin with new streams in caches of their own."""
        check_preferences(streams, self._attributes)
        prompts = LeanPrompts(self._model, streams, None if every_position else self._prefixes)
        return Prefill(streams, prompts, prompts.remaining, every_position)

    def extend(self, prefill: Prefill[LeanPrompts], tokens: int) -> int:
        """Compute the next columns of the prompts; returns the number of tokens."""
        prompts = prefill.state
        computed = prompts.advance(tokens)
        prefill.remaining = prompts.remaining
        if prefill.every_position and prompts.newest is not None:
            prefill.newest = self._read(prompts, prompts.newest)
        if not prefill.remaining:
            prefill.logits = self._read(prompts, prompts.last_hidden[:, None])[:, 0]
        return computed

    def join(self, prefill: Prefill[LeanPrompts]) -> None:
        """Copy the caches of new streams into the next rows; on a failure, put back what moved for them."""
        lengths = self._lengths | {stream: len(stream.prompt) for stream in prefill.streams}
        table, cores = self._table.copy(), self._cores | prefill.state.cores
        moves = table.join(prefill.streams)
        self._caches.reserve(len(table.trunk), len(table), max(lengths.values()))
        self._caches.upper.move(moves)  # into rows that no stream owns
        before = self._table, self._lengths, self._cores
        self._table, self._lengths, self._cores = table, lengths, cores
        try:
            self._adopt(prefill.state)
            self._step.arrange(self._arrangement())
        except BaseException:
            self._table, self._lengths, self._cores = before
            self._restore(moves)
            raise

    def decode(self, tokens: Tensor, reads: Sequence[Read] | None = None) -> Tensor:
        """Feed every row its newest token; see :meth:`armature.inference.runner.ModelRunner.decode`."""
        shortest, longest = min(self._lengths.values()), max(self._lengths.values())
        self._caches.reserve(len(self._table.trunk), len(self), longest + 1)
        logits = self._step(tokens, shortest, longest, reads)
        self._lengths = {stream: length + 1 for stream, length in self._lengths.items()}
        return logits

    def evict(self, rows: Sequence[int]) -> None:
        """Free these rows; the others move up in order."""
        if len(set(rows)) == len(self):
            self.clear()
        elif rows:
            moves = self._table.evict(rows)
            self._lengths = {stream: self._lengths[stream] for stream in self._table.streams}
            self._cores = {stream: self._cores[stream] for stream in self._table.branches}
            self._caches.lower.move(moves.trunk)
            self._caches.upper.move(moves.trunk)
            self._caches.upper.move(moves.branches)
            self._step.arrange(self._arrangement())

    def clear(self) -> None:
        """Free all rows, and what the step does not keep of their memory."""
        self._table, self._lengths, self._cores = RowTable(), {}, {}
        self._step.rest()

    def _adopt(self, prompts: LeanPrompts) -> None:
        """Copy the prompts' caches into the rows that their streams have been given."""
        rows = self._table.rows
        for stream, source in prompts.rows.items():
            if stream.parent is None:
                self._caches.lower.adopt(prompts.lower, rows[stream], source, len(stream.prompt))
            self._caches.upper.adopt(prompts.upper, rows[stream], source, len(stream.prompt))

    def _restore(self, moves: Sequence[Move]) -> None:
        """Undo the moves of a join that failed. If that fails too, free all rows: none may be read."""
        try:
            if not len(self):
                return self.clear()
            self._caches.upper.move([(target, source) for source, target in moves])
            self._step.arrange(self._arrangement())
        except BaseException:
            self.clear()
            raise

    def _arrangement(self) -> Arrangement:
        table, rows = self._table, self._table.rows
        number_of = {stream: number for number, stream in enumerate(table.streams)}
        return Arrangement(
            feeds=[number_of[stream] for stream in table.trunk],
            parents=[rows[stream.parent] for stream in table.branches if stream.parent is not None],
            cores=[self._cores[stream] for stream in table.branches],
            lengths=[self._lengths[stream] for stream in rows],
            rows=[rows[stream] for stream in table.streams],
        )

    def _read(self, prompts: LeanPrompts, hidden: Tensor) -> Tensor:
        """Return logits (n, T, V) in the streams' order from the prompts' hidden states (rows, T, hidden)."""
        logits = self._model.read(self._model.normed(hidden.flatten(0, 1)))[:, : self._vocab_size]
        order = [prompts.rows[stream] for stream in prompts.streams]
        by_row = logits.view(*hidden.shape[:2], -1)
        return by_row if order == list(range(len(order))) else by_row[index(order, logits.device)]
