"""All K attribute gradients of an adapter from one backward pass (ProSocialAlign's g_i, arXiv 2512.06515, 3.3).

Every attribute loss is a function of the same scalar per pair, its margin ``m_i = r(first answer) - r(second answer)``,
so ``g_k = sum_i w_ki dm_i/dphi`` with ``w_ki = dl_k/dm_i``. The rows of a batch do not see each other: one backward of
``sum_i m_i`` brings every row's own gradient to each adapter, and weighting the rows by ``w_k`` there gives all K
gradients. K backward passes through the backbone become K small low-rank products::

    u = A x,  v = core u + shift,  y = s B v,  G = dm/dy    per row and token
    dB_k = s sum_rows w_k G v^T         V = s B^T G
    dcore = V u^T, dshift = V           dA_k = sum_rows w_k (core^T V) x^T
    dW1_k, dW2_k                        from dcore, dshift, p and w_k, by the adapter's kind

Symbols: as in :mod:`armature.algorithms.conditioned_lora`; pairs N; rows N or 2N: both answers of a pair in one row,
or one after the other.

What differs from the paper: it does not say how its g_i are computed. This needs a model whose rows are independent
(no batch norm), which all causal language models are; gradients are exact, not approximations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from armature.algorithms.conditioned_lora import AdapterWeights, ConditionedShape, Core


class Kept(NamedTuple):
    """What a layer's forward pass leaves for its backward pass."""

    x: Tensor
    """(rows, T, in), in the dtype it came in."""
    preferences: Tensor
    """(rows, K)"""
    core: Tensor
    """``s core(p)``: (rows, R, R)"""
    low: Tensor
    """``u``: (rows, T, R)"""
    hidden: Tensor
    """``s v``: (rows, T, R)"""


def apply_and_keep(
    weights: AdapterWeights, x: Tensor, preferences: Tensor, shape: ConditionedShape
) -> tuple[Tensor, Kept]:
    """:func:`armature.algorithms.conditioned_lora.apply_adapter`, with what its gradients need."""
    matrix, shift = shape.core(weights.w1, weights.w2, preferences)
    core = shape.scale * matrix
    low = x.to(weights.a.dtype) @ weights.a.T
    hidden = low @ core.transpose(-1, -2)
    if shift is not None:
        hidden = hidden + shape.scale * shift[:, None]
    return hidden @ weights.b.T, Kept(x, preferences, core, low, hidden)


def weighted_gradients(
    weights: AdapterWeights, kept: Kept, grad_output: Tensor, row_weights: Tensor, shape: ConditionedShape
) -> tuple[AdapterWeights, Tensor]:
    """The K gradients of one layer from what one backward brought to it.

    Args:
        weights: The layer's adapter.
        kept: From :func:`apply_and_keep`.
        grad_output: Gradient of the summed margins at the adapter's output, (rows, T, out).
        row_weights: ``w``: how much each row counts for each objective, (rows, objectives).
        shape: The adapter's.

    Returns:
        Gradients with a leading dimension of objectives, and the summed margins' own at ``u``, (rows, T, R).
    """
    objectives = row_weights.shape[1]
    grad_hidden = linear(grad_output, weights.b.T.contiguous())  # BLAS is slow on B's own strides
    grad_low = grad_hidden @ kept.core
    grad_core = Core(shape.scale * (grad_hidden.transpose(-1, -2) @ kept.low), shape.scale * grad_hidden.sum(1))
    w1, w2 = shape.core_gradients(grad_core, kept.preferences, row_weights)

    def weigh(left: Tensor, right: Tensor) -> Tensor:
        """``sum_rows w_k (sum_t left right^T)``: over the tokens once, over the rows for every objective."""
        by_row = left.transpose(-1, -2) @ right  # (rows, R, in or out)
        return (row_weights.T @ by_row.flatten(1)).view(objectives, *by_row.shape[1:])

    gradients = AdapterWeights(
        a=weigh(grad_low, kept.x.to(grad_low.dtype)),
        b=weigh(kept.hidden, grad_output).transpose(-1, -2),
        w1=w1,
        w2=w2,
    )
    return gradients, grad_low


class ObjectiveGradients:
    """Accumulates the gradients of every layer over the micro-batches of one optimiser step.

    Conflicts must be resolved on the sum over a step, never per micro-batch: for a single pair all gradients are
    collinear, and projecting them off each other leaves nothing.
    """

    def __init__(self) -> None:
        self.layers: dict[str, AdapterWeights] = {}
        """Gradients by layer, (objectives, ...) each."""
        self._row_weights: Tensor | None = None
        self._outputs: list[Tensor] = []
        self._rows = 0

    def apply(
        self, name: str, weights: AdapterWeights, x: Tensor, preferences: Tensor, shape: ConditionedShape
    ) -> Tensor:
        """A layer's :func:`~armature.algorithms.conditioned_lora.apply_adapter`; its backward records under ``name``.

        What the gradient needs is saved by autograd, so activation checkpointing frees and recomputes it too.
        """
        delta: Tensor = _RecordedAdapter.apply(  # type: ignore[no-untyped-call]
            x, preferences, *weights, (self, name, shape)
        )
        self._outputs.append(weights.b)
        self._rows = len(preferences)
        return delta

    def backward(self, margins: Tensor, objectives: Tensor) -> None:
        """One backward pass through the model; adds the gradient of every objective to :attr:`layers`.

        Args:
            margins: (N,), in the order of the rows of the forward pass, which has as many rows for each.
            objectives: (K,), each a function of the margins, already divided by the step's number of pairs.

        Raises:
            ValueError: No layer was applied in the forward pass.
        """
        if not self._outputs:
            raise ValueError("no adapter layer was applied: run the forward pass with this recorder")
        per_margin = [torch.autograd.grad(objective, margins, retain_graph=True)[0] for objective in objectives]
        self._row_weights = torch.stack(per_margin, dim=1).repeat_interleave(self._rows // len(margins), dim=0)
        try:
            # The layers do the work on the way. B is asked for so that every layer is visited; its gradient is None.
            torch.autograd.grad(margins.sum(), self._outputs, allow_unused=True)
        finally:
            self._row_weights, self._outputs = None, []

    def record(self, name: str, gradients: AdapterWeights) -> None:
        """Add one layer's gradients to what earlier micro-batches left."""
        before = self.layers.get(name)
        self.layers[name] = gradients if before is None else AdapterWeights(*map(torch.add, before, gradients))

    @property
    def row_weights(self) -> Tensor:
        """``w`` of the backward pass that is under way."""
        if self._row_weights is None:
            raise RuntimeError("a recorded layer's gradient was asked for outside ObjectiveGradients.backward")
        return self._row_weights


class _RecordedAdapter(torch.autograd.Function):
    """A layer's adapter; its backward tells the recorder all objectives' gradients and passes on the input's alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, preferences: Tensor, *rest: Any) -> Tensor:
        *tensors, ctx.destination = rest
        weights = AdapterWeights(*tensors)
        delta, kept = apply_and_keep(weights, x, preferences, ctx.destination[2])
        ctx.save_for_backward(*weights, *kept)
        return delta

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_output,), tensors = grad_outputs, ctx.saved_tensors
        recorder, name, shape = ctx.destination
        weights, kept = AdapterWeights(*tensors[:4]), Kept(*tensors[4:])
        gradients, grad_low = weighted_gradients(weights, kept, grad_output, recorder.row_weights, shape)
        recorder.record(name, gradients)
        grad_x = (grad_low @ weights.a).to(kept.x.dtype) if ctx.needs_input_grad[0] else None
        return (grad_x, *[None] * (len(tensors) - 3))
