"""A step over exactly the rows and columns that there are: what a processor wants, for which padding is work."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from armature.modeling.lean.model import LeanModel, Streams
from armature.modeling.lean.prefill import arm_index, twin_logits
from armature.modeling.lean.step import Arrangement, Caches, index
from armature.modeling.rows import TwinLogits


@dataclass(frozen=True)
class _Layout:
    """An arrangement's tensors. ``order`` is the safe row of each slot and then the ARM rows of the guided ones,
    ``arm`` each slot's ARM stream in that order."""

    streams: Streams
    feeds: Tensor
    lengths: Tensor
    order: Tensor
    arm: Tensor | slice


class DynamicStep:
    """Implements :class:`armature.modeling.lean.step.Step`. Between two batches it holds no memory."""

    def __init__(self, model: LeanModel, caches: Caches, vocab_size: int | None) -> None:
        self._model = model
        self._caches = caches
        self._vocab_size = vocab_size
        self._layout: _Layout | None = None

    def arrange(self, arrangement: Arrangement) -> None:
        """Make the tensors that stay the same until the next join or leave."""
        device, arm_rows = self._model.device, arrangement.arm_rows
        self._layout = _Layout(
            streams=Streams.of(self._model, arrangement.parents, arrangement.cores),
            feeds=index(arrangement.feeds, device),
            lengths=index(arrangement.lengths, device),
            order=index([*arrangement.safe_rows, *(row for row in arm_rows if row is not None)], device),
            arm=arm_index(self._model, [row is not None for row in arm_rows]),
        )

    def rest(self) -> None:
        """Give all memory back."""
        self._layout = None
        self._caches.clear()

    def __call__(self, tokens: Tensor, shortest: int, longest: int) -> TwinLogits:
        """See :class:`armature.modeling.lean.step.Step`."""
        layout, safe = self._layout, len(tokens)
        assert layout is not None, "somebody is there"
        attend = (
            self._caches.lower.extend(layout.lengths[:safe], shortest, longest),
            self._caches.upper.extend(layout.lengths, shortest, longest),
        )
        positions = layout.lengths[:safe, None]
        hidden = self._model.forward(tokens[layout.feeds][:, None], positions, layout.streams, attend)
        layout.lengths.add_(1)
        return twin_logits(self._model, hidden[layout.order, 0], safe, layout.arm, self._vocab_size)
