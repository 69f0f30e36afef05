"""One base's dense weights under any number of adapters, each a runnable model of its own."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel

from armature.inference.lean.model import LeanModel
from armature.inference.lean.weights import LeanWeights


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
