"""The processes of a group as torch.distributed connects them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


class TorchRanks:
    """Implements :class:`armature_worker.context.process_group.Ranks` on the default process group."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """A block of neighbours; their number is a multiple of the group's size."""
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """One all-reduce for all of them: many small ones would wait for the network each."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
