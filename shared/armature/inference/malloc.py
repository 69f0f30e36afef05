"""What a process does with memory that tensors on the CPU leave: it keeps it, until it is told to give it back.

glibc hands what is free at the end of its heap to the kernel at once and asks for it again at the next tensor, which
then comes with a page fault for every four kilobytes. A decoding step makes and drops dozens of tables over the
vocabulary, and with large batches the faults took longer than the sums in them.

It also gives threads heaps of their own, and never gives back the end of one, up to 64 MB, even when told to: each
model that came and went left more in whichever heaps its threads had met. With one heap for all, what is free goes.
"""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_NEVER = (1 << 31) - 1
_LARGEST_KEPT = 32 << 20
"""Bytes, the most that glibc takes for it: what is larger, as the weights of large models are, goes back at once."""


def keep_freed_memory() -> None:
    """For the rest of the process, and for threads that have no heap yet. Without effect where there is no glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Whatever is free now, wherever it lies."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
