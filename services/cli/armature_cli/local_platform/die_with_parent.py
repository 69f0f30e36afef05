"""Ties a child process to its parent's life, so that a parent that is killed leaves nothing running.

:func:`tethered` puts this file in front of a command. It runs as a program of its own in the child: it asks the
kernel for a signal on the parent's death, then becomes the command. Doing that after the fork, in a fresh
interpreter, is safe from threads, which ``subprocess``'s ``preexec_fn`` is not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str], death_signal: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command, changed to receive ``death_signal`` when the thread that starts it ends.

    Outside Linux the command is left alone: there is no such request to the kernel.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(int(death_signal)), str(os.getpid()), *command]


def _main(death_signal: int, parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it died before the request was made
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - there is no shell to want


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
