"""Reward margins of answer pairs under an ARM, both answers in one forward pass."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor

from armature.algorithms.objective_gradients import ObjectiveGradients
from armature.algorithms.preference_loss import compute_rewards, pair_margins, token_log_probs
from armature.contracts.artifacts import LossForm
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.answer_logits import logits_at
from armature_worker.data.pair_batches import PairBatch


@torch.no_grad()
def reference_log_probs(model: PeftModel, form: LossForm, batch: PairBatch) -> Tensor | None:
    """Compute the answers' log-probabilities with the adapter off, (2N,); None if ``form`` needs none."""
    if form != "reference":
        return None
    with model.disable_adapter():
        return _log_probs(model, batch)


def compute_margins(
    model: PeftModel,
    form: LossForm,
    batch: PairBatch,
    drawn: Tensor,
    reference: Tensor | None,
    training: tuple[ObjectiveGradients, Tensor] | None = None,
) -> Tensor:
    """Compute how much more the ARM rewards each pair's first answer than its second, (N,).

    Args:
        model: The backbone with its adapter.
        form: The reward's form, see :func:`armature.algorithms.preference_loss.compute_rewards`.
        batch: From :meth:`armature_worker.data.pair_batches.PairLayout.collate`.
        drawn: The preference of each pair, (N, K).
        reference: From :func:`reference_log_probs`.
        training: The recorder of all objectives' gradients, and each pair's dropout seed, (N,).
    """
    recorder, seeds = training or (None, None)
    rows = batch.rows_per_pair
    seeds = None if seeds is None else seeds.repeat_interleave(rows)
    with preferences(model, drawn.repeat_interleave(rows, 0), recorder=recorder, seeds=seeds):
        log_probs = _log_probs(model, batch)
    return pair_margins(compute_rewards(log_probs, batch.answers.sum(-1), form, reference))


def _log_probs(model: PeftModel, batch: PairBatch) -> Tensor:
    """Compute the log-probability of each answer, (2N,)."""
    with logits_at(model.get_base_model(), batch.predictors):
        logits = model(**batch.inputs, use_cache=False).logits[0]
    by_token = token_log_probs(logits, batch.targets)
    by_answer = torch.zeros(batch.answers.shape, device=by_token.device)
    return by_answer.masked_scatter(batch.answers, by_token).sum(-1)
