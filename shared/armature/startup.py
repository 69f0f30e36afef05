"""Start a process without garbage collections."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def startup_without_gc() -> Iterator[None]:
    """Pause garbage collection while the block runs, then freeze all objects that exist.

    The block imports and builds what the process keeps. Imports leave no garbage, and looking for it takes up to a
    third of their time. What is there at the end is exempt from later collections: each would look through every
    imported module, with the GIL held.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
