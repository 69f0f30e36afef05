"""A step over exactly the rows and columns that there are: what a processor wants, for which padding is work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from armature.inference.lean.model import LeanModel, Streams
from armature.inference.lean.readout import Readout
from armature.inference.lean.step import Arrangement, Caches, index
from armature.inference.runner import Mixed, TwinLogits


@dataclass(frozen=True)
class _Layout:
    """An arrangement, and what stays the same until the next one as tensors."""

    arrangement: Arrangement
    streams: Streams
    feeds: Tensor
    lengths: Tensor


class DynamicStep:
    """Implements :class:`armature.inference.lean.step.Step`. Between two batches it holds no memory."""

    mixes = True

    def __init__(self, model: LeanModel, caches: Caches, vocab_size: int | None) -> None:
        self._model = model
        self._caches = caches
        self._vocab_size = vocab_size
        self._layout: _Layout | None = None
        self._wanted: tuple[Mixed | None, ...] = ()
        self._readout: Readout | None = None

    def arrange(self, arrangement: Arrangement) -> None:
        """Make the tensors that stay the same until the next join or leave."""
        device = self._model.device
        self._readout = None
        self._layout = _Layout(
            arrangement,
            streams=Streams.of(self._model, arrangement.parents, arrangement.cores),
            feeds=index(arrangement.feeds, device),
            lengths=index(arrangement.lengths, device),
        )

    def rest(self) -> None:
        """Give all memory back."""
        self._layout = self._readout = None
        self._caches.clear()

    def __call__(self, tokens: Tensor, shortest: int, longest: int, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """See :class:`armature.inference.lean.step.Step`."""
        layout, safe = self._layout, len(tokens)
        assert layout is not None, "somebody is there"
        attend = (
            self._caches.lower.extend(layout.lengths[:safe], shortest, longest),
            self._caches.upper.extend(layout.lengths, shortest, longest),
        )
        positions = layout.lengths[:safe, None]
        hidden = self._model.forward(tokens[layout.feeds][:, None], positions, layout.streams, attend)
        layout.lengths.add_(1)
        readout = self._read(layout.arrangement, mixed)
        return readout.split(self._model.read(readout.mix(self._model.normed(hidden[:, 0])))[:, : self._vocab_size])

    def _read(self, arrangement: Arrangement, mixed: Sequence[Mixed | None]) -> Readout:
        """The newest readout as long as the same is wanted."""
        wanted = tuple(mixed)
        if self._readout is None or self._wanted != wanted:
            self._wanted = wanted
            self._readout = Readout.of(arrangement.safe_rows, arrangement.arm_rows, mixed, self._model.device)
        return self._readout
