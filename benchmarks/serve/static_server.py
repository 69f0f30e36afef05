"""``python -m benchmarks.serve.static_server PEER``: the decoder with static batching, all else as it is.

A batch is filled while it is empty, and nobody joins before its last request has finished. What becomes of those that
finish earlier is what the peers of :data:`SCHEDULERS` differ in.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Any

from armature_decoder.engine.request import EngineRequest, Event, Sink
from armature_decoder.engine.scheduler import Scheduler
from armature_decoder.http.server import serve


class EarlyExitScheduler(Scheduler):
    """Who has finished has the answer at once and costs nothing from then on: kinder than what is called static."""

    def admit(self) -> None:
        """Let waiting requests join, if nobody runs or joins."""
        if not (self.running or self.joining):
            super().admit()


class StaticScheduler(EarlyExitScheduler):
    """Static, or request-level, batching (Yu et al., Orca, OSDI 2022, section 3; ``generate`` of transformers).

    Every row of a batch is computed until the last one has finished, and the answers come then, all of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._finished: set[int] = set()
        self._held: list[tuple[Sink, Event]] = []

    def add(self, request: EngineRequest) -> None:
        """Let a request wait for its turn, and its answer for those beside it."""
        request.sink = self._holding(request.sink)
        super().add(request)

    def retire(self, ids: Container[int]) -> list[int]:
        """Nobody leaves before everybody has finished."""
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

if __name__ == "__main__":
    serve(SCHEDULERS[sys.argv[1]])
