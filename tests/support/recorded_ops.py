"""What a CUDA graph does, on any device: record operations once, then repeat them on the same memory.

A replay knows nothing but what was recorded: the same operations, the same numbers, the same tensors. So a number that
a computation took from Python, or a buffer that has moved since, shows up as a wrong result, as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from armature.inference.lean.graph_cache import Compute


class LooksInside(AssertionError):
    """A computation depends on what is in a tensor, or brings data of the host along: it can not be recorded."""


class _Operation(NamedTuple):
    run: Callable[[], Any]
    outputs: list[Tensor]
    """Memory of its own that it wrote to; none if it wrote in place."""


def repeat(compute: Compute) -> Compute:
    """Record nothing: compute again, in the same shapes and at the same addresses."""
    return compute


class RecordedOps:
    """Implements :data:`armature.inference.lean.graph_cache.Capture`. ``captures`` and ``replays`` count."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def __call__(self, compute: Compute) -> Compute:
        """Record; afterwards everything is as if nothing had been computed, and results are not numbers."""
        self.captures += 1
        with _Recorder() as recorder:
            output = compute()
        recorder.undo()

        def replay() -> Tensor:
            self.replays += 1
            with torch.inference_mode():
                for operation in recorder.operations:
                    result = operation.run()
                    for held, value in zip(operation.outputs, _tensors(result), strict=False):
                        held.copy_(value)
            return output

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry the operation out, and note how to do it again."""
        kwargs = kwargs or {}
        _refuse_looking(func, args, kwargs)
        written = list(_written(func, args, kwargs))
        self._before += [(tensor, tensor.clone()) for tensor in written]
        result = func(*args, **kwargs)
        held = {_address(tensor) for tensor in _tensors((args, kwargs))}
        outputs = [tensor for tensor in _tensors(result) if _address(tensor) not in held]
        if written or outputs:  # else it is a view
            self.operations.append(_Operation(lambda: func(*args, **kwargs), outputs))
        return result

    def undo(self) -> None:
        with torch.inference_mode():
            for tensor, before in reversed(self._before):
                tensor.copy_(before)
            for operation in self.operations:
                for output in operation.outputs:
                    if output.is_floating_point():
                        output.fill_(float("nan"))


def _refuse_looking(func: Any, args: Any, kwargs: Any) -> None:
    if func is torch.ops.aten.lift_fresh.default:
        raise LooksInside("a tensor is made from numbers of the host")
    if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        if any(tensor.dtype == torch.bool for tensor in _tensors(args[1])):
            raise LooksInside("a mask decides how much there is")
    elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        raise LooksInside(f"{func} of {[tuple(tensor.shape) for tensor in _tensors((args, kwargs))]}")


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs[argument.name]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    if tensor.is_mkldnn:  # a weight in a layout of its own: nothing is a view of it
        return id(tensor)
    return tensor.untyped_storage().data_ptr()
