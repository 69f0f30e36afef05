"""The size of micro-batches: as many rows in a forward pass as the device has memory for now.

Sizes are halves of the batch, so that a few bytes more or less of free memory rarely change the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable

from armature_worker.context.ports import RecipeContext

_USABLE = 0.9
"""Share of the free memory: an estimate leaves out the allocator's fragmentation."""


def fit_micro_batch(context: RecipeContext, batch_size: int, needs: Callable[[int], int]) -> int:
    """Return the largest half, quarter, ... of ``batch_size`` that fits into memory; at least 1.

    Args:
        context: The job's; it logs a size below ``batch_size``.
        batch_size: Rows of a step, for each process.
        needs: Rows of a forward pass -> estimated bytes of the job.
    """
    free = context.free_memory().get(context.device)
    size = batch_size
    while free is not None and size > 1 and needs(size) > _USABLE * free:
        size = (size + 1) // 2
    if size < batch_size:
        data = {"micro_batch_size": size, "needs_bytes": needs(size), "free_bytes": free}
        context.log(f"{size} of {batch_size} rows of a step fit into memory at once", "info", data)
    return size
