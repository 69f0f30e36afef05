"""Recorded computations by their shapes: what a GPU is told once, and then only started.

A decoding step is hundreds of small kernels, and starting each costs a processor more time than a GPU needs to run it.
Started together, as one graph, they cost next to nothing. A graph repeats what was recorded to the letter: the same
kernels with the same numbers on the same addresses. So a computation that is recorded reads whatever changes from
tensors that stay where they are, and never looks into one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

Compute = Callable[[], Tensor]
Capture = Callable[[Compute], Compute]
"""Records a computation without carrying it out, and gives back what carries it out."""

MOST_REPLAYS = 64


class Replays:
    """At most ``most`` recorded computations; the least recently used go first.

    A shape is recorded when it comes for the second time. The first time warms up what can not be recorded (handles and
    plans of libraries), and a shape that never comes again costs nothing.
    """

    def __init__(self, capture: Capture, most: int = MOST_REPLAYS) -> None:
        self._capture = capture
        self._most = most
        self._replays: OrderedDict[Hashable, Compute | None] = OrderedDict()

    def __len__(self) -> int:
        """How many shapes are known."""
        return len(self._replays)

    def run(self, shape: Hashable, compute: Compute) -> Tensor:
        """Carry out, once, the computation that this shape stands for."""
        if shape not in self._replays:
            self._replays[shape] = None
            if len(self._replays) > self._most:
                self._replays.popitem(last=False)
            return compute()
        self._replays.move_to_end(shape)
        replay = self._replays[shape]
        if replay is None:
            replay = self._replays[shape] = self._capture(compute)
        return replay()

    def clear(self) -> None:
        """Forget all of them: something has moved."""
        self._replays.clear()
