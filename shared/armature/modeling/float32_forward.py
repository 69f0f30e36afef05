"""Forward passes in float32 of a model whose weights are narrower, without a float32 copy of it.

A self-test compares what two machines compute. In bfloat16 one step of a logit between 16 and 32 is 0.125, more than
many adapters move it; in float32 the order of sums changes it by less than 1e-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def float32_forward(model: nn.Module, rounded_to: torch.dtype | None = None) -> Iterator[None]:
    """Run ``model`` in float32: each module's own weights are widened while that module runs.

    Memory grows by the largest module in float32. Tensors that models share stay as they are, so other models on them
    may run meanwhile; ``model`` itself may not.

    Args:
        model: The model. Modules that are not called, such as those that hold an adapter's tensors, keep theirs.
        rounded_to: Round the weights to this dtype first, as if they had been loaded in it; None: as they are.
    """
    handles = []
    for module in model.modules():
        if any(tensor.is_floating_point() for tensor in module.parameters(recurse=False)):
            held = _Held(rounded_to)
            handles.append(module.register_forward_pre_hook(held.widen))
            # First of the hooks, so before FSDP frees what it has gathered; also after a forward pass that raises.
            handles.append(module.register_forward_hook(held.restore, prepend=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Held:
    """The stored parameters of one module while widened ones are in their place."""

    def __init__(self, rounded_to: torch.dtype | None) -> None:
        self._rounded_to = rounded_to
        self._stored: dict[str, nn.Parameter] = {}

    def widen(self, module: nn.Module, *_: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point():
                self._stored[name] = parameter
                module._parameters[name] = nn.Parameter(self._exact(parameter.detach()), requires_grad=False)

    def restore(self, module: nn.Module, *_: Any) -> None:
        module._parameters.update(self._stored)
        self._stored = {}

    def _exact(self, weight: Tensor) -> Tensor:
        return weight.to(self._rounded_to or weight.dtype).float()
