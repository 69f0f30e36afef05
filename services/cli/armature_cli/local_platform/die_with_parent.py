"""Child processes that end with their parent, even a killed one.

:func:`die_with_parent` puts this file in front of a command. It runs as a program of its own in the child: it asks the
kernel for a signal on the parent's death (``PR_SET_PDEATHSIG``), then becomes the command. In a fresh interpreter
after the fork that is safe with threads, unlike ``subprocess``'s ``preexec_fn``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def die_with_parent(command: Sequence[str], death_signal: signal.Signals = signal.SIGTERM) -> list[str]:
    """Wrap ``command`` so that it receives ``death_signal`` when the thread that starts it ends.

    Outside Linux the command is returned unchanged: the kernel has no such request.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(int(death_signal)), str(os.getpid()), *command]


def _main(death_signal: int, parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # the parent died before the request was made
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - there is no shell to want


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
