"""``python -m armature_cli.bench.serve.static_server``: the decoder with static batching, and nothing else changed.

A batch is filled while it is empty, and nobody joins before its last request has finished. Requests that finish earlier
have their answers at once and cost nothing more, so it is a kinder peer than one that pads its batch to the end.
"""

from __future__ import annotations

from armature_decoder.__main__ import main
from armature_decoder.engine.scheduler import Scheduler


class StaticScheduler(Scheduler):
    """Admits only into an empty batch."""

    def admit(self) -> None:
        """Let waiting requests join, if nobody runs or joins."""
        if not (self.running or self.joining):
            super().admit()


if __name__ == "__main__":
    main(StaticScheduler)
