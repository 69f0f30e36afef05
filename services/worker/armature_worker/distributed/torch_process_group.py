"""The process group of a job, on torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


class TorchProcessGroup:
    """A :class:`armature_worker.context.process_group.ProcessGroup` on torch's default process group."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        """Return a block of neighbours; the number of rows must be a multiple of the group's size."""
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum all tensors in one all-reduce: many small ones would each wait for the network."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
