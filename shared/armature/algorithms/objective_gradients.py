"""All K attribute gradients of a PBLoRA adapter from one backward pass (ProSocialAlign's g_i, arXiv 2512.06515, 3.3).

Every attribute loss is a function of the same scalar per pair, its margin ``m_i = r(first answer) - r(second answer)``,
so ``g_k = sum_i w_ki dm_i/dphi`` with ``w_ki = dl_k/dm_i``. The rows of a batch do not see each other: one backward of
``sum_i m_i`` brings every row's own gradient to each adapter, and weighting the rows by ``w_k`` there gives all K
gradients. K backward passes through the backbone become K small low-rank products::

    u = A x,  v = core u,  y = s B v,  G = dm/dy            per row and token
    dB_k = s sum_rows w_k G v^T         V = s B^T G
    dcore_k = sum_rows w_k V u^T        dA_k = sum_rows w_k (core^T V) x^T
    dW1_k = top left block of dcore_k   dW2_k = sum_rows w_k p (x) bottom right block of V u^T

Symbols: as in :mod:`armature.algorithms.pblora`; pairs N, rows 2N, where rows 2i and 2i + 1 hold pair i's two answers.

What differs from the paper: it does not say how its g_i are computed. This needs a model whose rows are independent
(no batch norm), which all causal language models are; gradients are exact, not approximations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from armature.algorithms.pblora import PBLoRA, mix_core

ROWS_PER_PAIR = 2


def weighted_gradients(
    weights: PBLoRA, x: Tensor, preferences: Tensor, grad_output: Tensor, row_weights: Tensor, scale: float
) -> PBLoRA:
    """The K gradients of one layer from what one backward brought to it.

    Args:
        weights: The layer's adapter.
        x: The adapter's input, (rows, T, in).
        preferences: (rows, K).
        grad_output: Gradient of the summed margins at the adapter's output, (rows, T, out).
        row_weights: ``w``: how much each row counts for each objective, (rows, objectives).
        scale: alpha / r2.

    Returns:
        Gradients with a leading dimension of objectives.
    """
    core, objectives, r1 = mix_core(weights, preferences), row_weights.shape[1], weights.rank_shared
    low = x @ weights.a.T
    hidden = low @ core.transpose(-1, -2)
    grad_hidden = scale * (grad_output @ weights.b)
    grad_low = grad_hidden @ core
    grad_core = grad_hidden.transpose(-1, -2) @ low  # (rows, R, R)
    grad_conditioned = grad_core[:, r1:, r1:].flatten(1)

    def weigh(left: Tensor, right: Tensor) -> Tensor:
        """``sum_rows w_k (sum_t left right^T)``: over the tokens once, over the rows for every objective."""
        by_row = left.transpose(-1, -2) @ right  # (rows, R, in or out)
        return (row_weights.T @ by_row.flatten(1)).view(objectives, *by_row.shape[1:])

    return PBLoRA(
        a=weigh(grad_low, x),
        b=weigh(scale * hidden, grad_output).transpose(-1, -2),
        w1=torch.einsum("rij,rk->kij", grad_core[:, :r1, :r1], row_weights),
        w2=torch.einsum("rp,rc,rk->kpc", preferences, grad_conditioned, row_weights),
    )


class ObjectiveGradients:
    """Accumulates the gradients of every tapped layer over the micro-batches of one optimiser step.

    Conflicts must be resolved on the sum over a step, never per micro-batch: for a single pair all gradients are
    collinear, and projecting them off each other leaves nothing.
    """

    def __init__(self) -> None:
        self.layers: dict[str, PBLoRA] = {}
        """Gradients by layer, (objectives, ...) each."""
        self._row_weights: Tensor | None = None
        self._outputs: list[Tensor] = []

    def tap(self, name: str, output: Tensor, x: Tensor, weights: PBLoRA, preferences: Tensor, scale: float) -> Tensor:
        """Called by a layer in its forward pass: returns ``output``, and listens to its gradient.

        What the gradient needs is saved by autograd, so activation checkpointing frees and recomputes it too.
        """
        tapped: Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
            output, x, preferences, *weights, (self, name, scale)
        )
        self._outputs.append(weights.b)
        return tapped

    def backward(self, margins: Tensor, objectives: Tensor) -> None:
        """One backward pass through the model; adds the gradient of every objective to :attr:`layers`.

        Args:
            margins: (N,), from a forward pass of 2N rows through tapped layers.
            objectives: (K,), each a function of the margins, already divided by the step's number of pairs.

        Raises:
            ValueError: No layer was tapped in the forward pass.
        """
        if not self._outputs:
            raise ValueError("no adapter layer was tapped: run the forward pass with this recorder")
        per_margin = [torch.autograd.grad(objective, margins, retain_graph=True)[0] for objective in objectives]
        self._row_weights = torch.stack(per_margin, dim=1).repeat_interleave(ROWS_PER_PAIR, dim=0)
        try:
            # The taps do the work. B's own gradients are asked for only because every tap lies on the way to a B.
            torch.autograd.grad(margins.sum(), self._outputs)
        finally:
            self._row_weights, self._outputs = None, []

    def record(self, name: str, gradients: PBLoRA) -> None:
        """Add one layer's gradients to what earlier micro-batches left."""
        before = self.layers.get(name)
        self.layers[name] = gradients if before is None else PBLoRA(*map(torch.add, before, gradients))

    @property
    def row_weights(self) -> Tensor:
        """``w`` of the backward pass that is under way."""
        if self._row_weights is None:
            raise RuntimeError("a tapped layer's gradient was asked for outside ObjectiveGradients.backward")
        return self._row_weights


class _Tap(torch.autograd.Function):
    """The identity on an adapter's output; its backward hands the gradient to the recorder on the way through."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, preferences: Tensor, *rest: Any) -> Tensor:
        *weights, ctx.destination = rest
        ctx.save_for_backward(x, preferences, *weights)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_output,), (x, preferences, *weights) = grad_outputs, ctx.saved_tensors
        recorder, name, scale = ctx.destination
        recorder.record(
            name,
            weighted_gradients(PBLoRA(*weights), x, preferences, grad_output, recorder.row_weights, scale),
        )
        return (grad_output, *[None] * (len(weights) + 3))
