"""``python -m benchmarks.serve.static_server PEER``: the decoder with static batching.

A batch is filled while it is empty, and no request joins before its last one has finished. The peers of
:data:`SCHEDULERS` differ in what happens to a request that finishes earlier.

The scheduler is replaced from here, in this process alone: the decoder takes none as an argument, because continuous
batching is the only kind it offers.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from armature_decoder.engine.request import EngineRequest, Event, Sink
from armature_decoder.engine.scheduler import Scheduler
from armature_decoder.http import app
from armature_decoder.http.server import serve


class EarlyExitScheduler(Scheduler):
    """A kinder variant of static batching: a finished request is answered at once and leaves the batch."""

    def admit(self) -> None:
        """Let waiting requests join if the batch is empty."""
        if not (self.running or self.joining):
            super().admit()


class StaticScheduler(EarlyExitScheduler):
    """Static, or request-level, batching.

    Every row of a batch is computed until the last one has finished; all answers come then (Yu et al., Orca, OSDI
    2022, section 3; ``generate`` of transformers).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._finished: set[int] = set()
        self._held: list[tuple[Sink, Event]] = []

    def add(self, request: EngineRequest) -> None:
        """Queue a request; its events are held back until its batch is done."""
        request.sink = self._holding(request.sink)
        super().add(request)

    def retire(self, ids: Container[int]) -> list[int]:
        """Keep every slot until all requests of the batch have finished, then release all of them."""
        self._finished |= {request.id for request in self.running if request.id in ids}
        if self.joining or any(request.id not in self._finished for request in self.running):
            return []
        finished, self._finished = self._finished, set()
        evicted = super().retire(finished)
        self._answer()
        return evicted

    def _holding(self, sink: Sink) -> Sink:
        def hold(event: Event) -> None:
            self._held.append((sink, event))
            if not (self.running or self.joining):  # it is the batch's last step
                self._answer()

        return hold

    def _answer(self) -> None:
        held, self._held = self._held, []
        for sink, event in held:
            sink(event)


SCHEDULERS: dict[str, type[Scheduler]] = {"static": StaticScheduler, "early_exit": EarlyExitScheduler}
"""The peers by name."""


def scheduled_by(scheduler: type[Scheduler]) -> AbstractContextManager[object]:
    """Make a context in which decoders are built with ``scheduler``.

    Raises:
        AttributeError: On entry, if the decoder's app no longer has a scheduler to replace.
    """
    return patch.object(app, "Scheduler", scheduler)


if __name__ == "__main__":
    with scheduled_by(SCHEDULERS[sys.argv[1]]):
        serve()
