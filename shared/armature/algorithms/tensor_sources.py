"""Differences of two models read in blocks, so that tensors may lie on disk and memory is bounded at any size.

Paper: ProSocialAlign (arXiv 2512.06515), section 3.2, for v; the guard is ours::

    v = theta_H - theta_b                        in float32
    v = v - (v . v_b / ||v_b||^2) v_b            optional: takes out what benign fine-tuning v_b changes too

Symbols: theta_H the harm-tuned weights, theta_b the base's, v_b the difference that benign data makes. Scalar products
run over all tensors together.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from torch import Tensor

BLOCK = 1 << 20
"""Entries of a block; the last block of a tensor is shorter. Also the unit of the file format."""
_THREADS = min(4, os.cpu_count() or 1)
_CPU = torch.device("cpu")

Key = TypeVar("Key")
Value = TypeVar("Value")
Shape = tuple[int, ...]


class TensorSource(Protocol):
    """Tensors that are read in parts: from a model in memory, from files, or computed from other sources."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shapes by name, in sorted order of names."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The flat entries ``start`` to ``stop`` of a tensor.

        Not to be written to, and good until the same thread reads from the same source again.
        """


class Scratch(threading.local):
    """Tensors that are used again: fresh memory costs more time, for the kernel to clear it, than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def empty(self, label: str, size: int, dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
        """A vector with anything in it; one per thread, label and kind."""
        key = label, dtype, device
        if key not in self._held or len(self._held[key]) < size:
            self._held[key] = torch.empty(size, dtype=dtype, device=device)
        return self._held[key][:size]


class LiveTensors:
    """Tensors in memory; the mapping may compute a tensor when asked for it, and is then asked once in a row."""

    def __init__(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape] | None = None) -> None:
        self._tensors = tensors
        self.shapes = {name: (shapes or {}).get(name) or tuple(tensors[name].shape) for name in sorted(tensors)}
        self._last: tuple[str, Tensor] = ("", torch.empty(0))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """A view where the tensor is contiguous."""
        last, flat = self._last
        if last != name:
            flat = self._tensors[name].detach().reshape(-1)
            self._last = name, flat
        return flat[start:stop]


class Part:
    """Some tensors of a source."""

    def __init__(self, source: TensorSource, names: Iterable[str]) -> None:
        self.read = source.read
        self.shapes = {name: source.shapes[name] for name in sorted(names)}


class Difference:
    """``tuned - base`` in float32, computed part by part when asked for (docs/traps.md, 6: never in bfloat16).

    Raises:
        ValueError: The sources do not hold the same floating-point tensors, or a difference is not finite.
    """

    def __init__(self, tuned: TensorSource, base: TensorSource, names: Iterable[str] | None = None) -> None:
        self._tuned, self._base, self._scratch = tuned, base, Scratch()
        self.shapes = {name: tuned.shapes[name] for name in sorted(tuned.shapes if names is None else names)}
        for name, shape in self.shapes.items():
            if base.shapes.get(name) != shape:
                raise ValueError(f"{name}: {shape} and {base.shapes.get(name)} differ")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Float32 differences on the tuned tensor's device."""
        tuned, base = self._tuned.read(name, start, stop), self._base.read(name, start, stop)
        if not (tuned.is_floating_point() and base.is_floating_point()):
            raise ValueError(f"{name}: {tuned.dtype} and {base.dtype} differ or are not floating-point")
        delta, subtrahend = (
            self._scratch.empty(label, len(tuned), torch.float32, tuned.device) for label in ("tuned", "base")
        )
        return delta.copy_(tuned).sub_(subtrahend.copy_(base))


class WithoutComponent:
    """The capability guard: ``v - (v . b / ||b||^2) b``, orthogonal to b over all tensors together; v where b is 0.

    Args:
        vector: v.
        benign: b, what benign data changed, with the same tensors.
    """

    def __init__(self, vector: TensorSource, benign: TensorSource) -> None:
        self._vector, self._benign = vector, benign
        self.shapes = vector.shapes
        products, squares = [], []
        for name, start, stop in blocks(vector.shapes):
            along = benign.read(name, start, stop).double()
            products.append(float(vector.read(name, start, stop).double() @ along))
            squares.append(float(along @ along))
        norm = math.fsum(squares)
        self.coefficient = math.fsum(products) / norm if norm else 0.0

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Float32, rounded once."""
        vector, benign = self._vector.read(name, start, stop), self._benign.read(name, start, stop)
        return vector.double().sub_(benign.double(), alpha=self.coefficient).float()


def blocks(shapes: Mapping[str, Shape], size: int = BLOCK) -> Iterator[tuple[str, int, int]]:
    """``(name, start, stop)`` of every block, in order of name and position."""
    for name in sorted(shapes):
        entries = math.prod(shapes[name])
        for start in range(0, entries, size):
            yield name, start, min(start + size, entries)


def map_in_order(function: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[tuple[Key, Value]]:
    """``(key, function(key))`` in order, computed by threads that stay only a few keys ahead: memory is bounded."""
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[tuple[Key, Future[Value]]] = deque()
        for key in keys:
            ahead.append((key, pool.submit(function, key)))
            if len(ahead) > 2 * _THREADS:
                first, value = ahead.popleft()
                yield first, value.result()
        for key, value in ahead:
            yield key, value.result()


def squares(values: Tensor, scratch: Tensor | None = None) -> float:
    """Sum of squares: pairwise in float32 (1e-6 relative), in float64 where float32 would over- or underflow."""
    quick = float(torch.mul(values, values, out=scratch).sum())
    return quick if 1e-25 < quick < 1e37 else float(values.double().square().sum())
