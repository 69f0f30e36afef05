"""One base's dense weights under any number of adapters, each a runnable model of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from armature.inference.lean.model import LeanModel
from armature.inference.lean.weights import LeanWeights
from armature.modeling.float32_forward import float32_forward


class SharedWeights:
    """A base model in memory. Its tensors never change, so models on them run in threads side by side.

    Args:
        model: Without an adapter; the base owns it from here on.
        lean: Whether the lean runner takes its weights; else transformers runs them.

    Raises:
        InvalidCheckpoint: The lean runner does not support this architecture.
    """

    def __init__(self, model: PreTrainedModel, lean: bool) -> None:
        self._modules = model.requires_grad_(False).eval()
        self._lean = LeanWeights(model) if lean else None

    def modules(self) -> PreTrainedModel:
        """Copy the module tree on the shared tensors, to attach an adapter to."""
        tensors = [*self._modules.parameters(), *self._modules.buffers()]
        return copy.deepcopy(self._modules, {id(tensor): tensor for tensor in tensors})

    def run(self, modules: PreTrainedModel) -> PreTrainedModel | LeanModel:
        """Make a model that runs of one of :meth:`modules`, with the adapter that was attached to it."""
        return modules if self._lean is None else LeanModel(modules, self._lean)

    @contextmanager
    def run_in_float32(self, modules: PreTrainedModel) -> Iterator[PreTrainedModel | LeanModel]:
        """Make a model for a self-test: what :meth:`run` makes, computing in float32 while the block lasts."""
        if self._lean is not None:
            yield LeanModel(modules, self._lean.in_float32())
            return
        with float32_forward(modules):
            yield modules
