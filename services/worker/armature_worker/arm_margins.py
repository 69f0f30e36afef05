"""What an ARM says of pairs of answers: their margins, with both answers in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from armature.algorithms.objective_gradients import ROWS_PER_PAIR, ObjectiveGradients
from armature.algorithms.preference_loss import compute_rewards, pair_margins, sequence_log_probs
from armature.modeling.peft_pblora import preferences
from armature_worker.datasets import Batch, Example, collate


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to one prompt; per attribute +1 where the first is better, -1 the second, 0 for a tie."""

    examples: Sequence[Example]
    signs: Sequence[float]


def compute_margins(
    model: PeftModel,
    form: str,
    pairs: Sequence[LabelledPair],
    drawn: Tensor,
    recorder: ObjectiveGradients | None = None,
) -> Tensor:
    """How much more the ARM rewards each pair's first answer, (pairs,).

    Args:
        model: The backbone with its adapter.
        form: The reward's form, see :func:`armature.algorithms.preference_loss.compute_rewards`.
        pairs: A batch.
        drawn: The preference of each pair, (pairs, K).
        recorder: Collects what the objectives' gradients need.
    """
    batch = collate([example for pair in pairs for example in pair.examples], str(model.device))
    reference = None
    if form == "reference":
        with torch.no_grad(), model.disable_adapter():
            reference = _log_probs(model, batch)
    with preferences(model, drawn.repeat_interleave(ROWS_PER_PAIR, 0), recorder=recorder):
        log_probs = _log_probs(model, batch)
    return pair_margins(compute_rewards(log_probs, batch.completion_mask.sum(-1), form, reference))


def _log_probs(model: PeftModel, batch: Batch) -> Tensor:
    output = model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
    return sequence_log_probs(output.logits, batch.ids, batch.completion_mask)
