"""Operations that find no memory, one after the other: what an action leaves behind wherever it fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class FailingOps(TorchDispatchMode):
    """Operations from number ``begin`` on to before ``end`` raise, counted while it is entered; views take nothing."""

    def __init__(self, begin: int, end: int) -> None:
        super().__init__()
        self._failing = range(begin, end)
        self._count = itertools.count()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or raise."""
        if not op.is_view and next(self._count) in self._failing:
            raise MemoryError(f"no room for {op}")
        return op(*args, **(kwargs or {}))


def fail_at_every_operation(action: Callable[[], object], check: Callable[[], object]) -> int:
    """Repeat ``action``, each time failing at its next operation, until it succeeds; ``check`` after each failure.

    Returns how often it failed.
    """
    for number in itertools.count():
        try:
            with FailingOps(number, number + 1):
                action()
        except MemoryError:
            check()
        else:
            return number
    raise AssertionError
