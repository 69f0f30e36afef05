"""One base's dense weights under any number of adapters, each a runnable model of its own."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel

from armature.inference.lean.model import LeanModel
from armature.inference.lean.weights import LeanWeights


class SharedBase:
    """A base model in memory. Its tensors are never changed: models on them run side by side, in threads of their own.

    Args:
        model: Without an adapter; it belongs to the base from here on.
        lean: Whether the lean back end takes its weights; else transformers runs them.

    Raises:
        InvalidCheckpoint: The lean back end does not run this architecture.
    """

    def __init__(self, model: PreTrainedModel, lean: bool) -> None:
        self._modules = model.requires_grad_(False).eval()
        self._lean = LeanWeights(model) if lean else None

    def modules(self) -> PreTrainedModel:
        """A module tree of its own on the shared tensors, to attach an adapter to."""
        tensors = [*self._modules.parameters(), *self._modules.buffers()]
        return copy.deepcopy(self._modules, {id(tensor): tensor for tensor in tensors})

    def run(self, modules: PreTrainedModel) -> PreTrainedModel | LeanModel:
        """Make one of :meth:`modules` run, with whatever adapter it has by now."""
        return modules if self._lean is None else LeanModel(modules, self._lean)
