"""What an ARM says of pairs of answers: their margins, with both answers in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from armature.algorithms.objective_gradients import ROWS_PER_PAIR, ObjectiveGradients
from armature.algorithms.preference_loss import compute_rewards, pair_margins, sequence_log_probs
from armature.contracts.artifacts import LossForm
from armature.modeling.peft_pblora import preferences
from armature_worker.arm_data import LabelledPair
from armature_worker.datasets import Batch, collate


def collate_pairs(pairs: Sequence[LabelledPair], device: str) -> Batch:
    """One batch of 2N rows; rows 2i and 2i + 1 hold pair i's answers."""
    return collate([example for pair in pairs for example in pair.examples], device)


@torch.no_grad()
def reference_log_probs(model: PeftModel, form: LossForm, batch: Batch) -> Tensor | None:
    """The answers' log-probabilities with the adapter off, (2N,), if the reward's form asks for them."""
    if form != "reference":
        return None
    with model.disable_adapter():
        return _log_probs(model, batch)


def compute_margins(
    model: PeftModel,
    form: LossForm,
    batch: Batch,
    drawn: Tensor,
    reference: Tensor | None,
    training: tuple[ObjectiveGradients, Tensor] | None = None,
) -> Tensor:
    """How much more the ARM rewards each pair's first answer, (N,).

    Args:
        model: The backbone with its adapter.
        form: The reward's form, see :func:`armature.algorithms.preference_loss.compute_rewards`.
        batch: From :func:`collate_pairs`.
        drawn: The preference of each pair, (N, K).
        reference: From :func:`reference_log_probs`.
        training: Where all objectives' gradients go, and the seed of each row's dropout, (2N,).
    """
    recorder, seeds = training or (None, None)
    with preferences(model, drawn.repeat_interleave(ROWS_PER_PAIR, 0), recorder=recorder, seeds=seeds):
        log_probs = _log_probs(model, batch)
    return pair_margins(compute_rewards(log_probs, batch.completion_mask.sum(-1), form, reference))


def _log_probs(model: PeftModel, batch: Batch) -> Tensor:
    output = model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
    return sequence_log_probs(output.logits, batch.ids, batch.completion_mask)
