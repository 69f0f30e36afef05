"""glibc's malloc, tuned: memory of freed CPU tensors stays with the process until it is trimmed.

By default glibc returns free memory at the end of its heap to the kernel at once and asks for it again at the next
tensor, with a page fault for every four kilobytes. A decoding step makes and drops dozens of tables over the
vocabulary, and with large batches the faults took longer than the arithmetic.

It also gives threads heaps of their own and never returns the end of one, up to 64 MB, even when trimmed: every model
that was loaded and unloaded left some in the heaps of its threads. One heap for all threads can be trimmed.
"""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_NEVER = (1 << 31) - 1
_LARGEST_KEPT = 32 << 20
"""Bytes, the most that glibc accepts: a larger block, such as the weights of a large model, is returned at once."""


def keep_freed_memory() -> None:
    """Keep freed memory in the process, and in one heap for threads started later; a no-op without glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Return all free memory to the kernel."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
