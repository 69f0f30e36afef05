"""Computations as CUDA graphs."""

from __future__ import annotations

import threading
from functools import cached_property
from weakref import WeakSet

import torch
from torch import Tensor

from armature.inference.lean.graph_cache import Compute

_capturing = threading.Lock()
"""CUDA allows one capture at a time in a process."""


class CudaGraphs:
    """Implements :data:`armature.inference.lean.graph_cache.Capture` on one device.

    The graphs share a memory pool for as long as one of them lives, so a result holds until the next replay. They are
    captured on a stream of their own: cuBLAS keeps a workspace for each stream, in the pool of the graph that first
    needed one, and torch 2.13 frees it with any graph of the stream. Within one pool that is harmless.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, compute: Compute) -> Compute:
        """Capture a computation; the error mode lets threads of other models use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self._graphs), None)
        capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        with _capturing, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            with torch.cuda.stream(current), capture:  # a capture that fails leaves its own stream behind
                output = compute()
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
