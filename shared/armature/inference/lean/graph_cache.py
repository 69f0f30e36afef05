"""LRU cache of recorded computations by shape: on a GPU, CUDA graphs.

A decoding step is hundreds of small kernels, and launching each costs a processor more time than a GPU needs to run it.
Launched together, as one graph, they cost next to nothing. A graph repeats what was recorded to the letter: the same
kernels on the same addresses. So a recorded computation reads whatever changes from tensors that stay where they are,
and never looks at a value in one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

Compute = Callable[[], Tensor]
Capture = Callable[[Compute], Compute]
"""Records a computation without carrying it out, and returns the function that replays it."""

MAX_GRAPHS = 64


class GraphCache:
    """At most ``limit`` recorded computations; the least recently used are evicted first.

    A shape is recorded when it is run for the second time. The first run warms up what can not be recorded (handles and
    plans of libraries), and a shape that is run once costs nothing.
    """

    def __init__(self, capture: Capture, limit: int = MAX_GRAPHS) -> None:
        self._capture = capture
        self._limit = limit
        self._graphs: OrderedDict[Hashable, Compute | None] = OrderedDict()

    def __len__(self) -> int:
        """The number of known shapes."""
        return len(self._graphs)

    def run(self, shape: Hashable, compute: Compute) -> Tensor:
        """Carry out, once, the computation that this shape stands for."""
        if shape not in self._graphs:
            self._graphs[shape] = None
            if len(self._graphs) > self._limit:
                self._graphs.popitem(last=False)
            return compute()
        self._graphs.move_to_end(shape)
        replay = self._graphs[shape]
        if replay is None:
            replay = self._graphs[shape] = self._capture(compute)
        return replay()

    def clear(self) -> None:
        """Drop all recordings: a buffer has moved."""
        self._graphs.clear()
