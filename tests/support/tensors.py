"""What tensors really take, and what they are by default."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def new_tensors() -> Iterator[Callable[[], int]]:
    """Gives the bytes of all tensors of this process that were made inside and are still there."""
    gc.collect()
    gc.freeze()  # objects from before are left out: quicker, and not this test's
    try:
        yield _live_bytes
    finally:
        gc.unfreeze()


def _live_bytes() -> int:
    """Storage that several share counts once."""
    gc.collect()
    sizes: dict[object, int] = {}
    # by type: some lazy modules warn when they are asked for their class
    for tensor in [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]:
        if tensor.is_mkldnn:  # a layout without a storage
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        elif tensor.device.type != "meta":
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As transformers has it, for the whole process, while it builds a model in another thread."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
