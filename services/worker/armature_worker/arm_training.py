"""The training loop of an ARM: every random choice of step t is a function of (seed, t).

Its rows, their preferences, dropout and the order of projections need no saved random state, so a resumed run equals
an uninterrupted one, to the bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from armature.algorithms.gradient_surgery import Resolution, combine_gradients, resolve_conflicts
from armature.algorithms.objective_gradients import ROWS_PER_PAIR, ObjectiveGradients
from armature.algorithms.pblora import join_parts, split_parts
from armature.algorithms.preference_loss import (
    attribute_losses,
    compute_rewards,
    pair_margins,
    sample_preferences,
    sequence_log_probs,
)
from armature.contracts.specs.arm import ArmTraining, ArmTrainSpec
from armature.errors import NonFiniteLoss, TrainingStalled
from armature.modeling.peft_pblora import adapter_layers, preferences
from armature_worker.context import Interrupted, RecipeContext
from armature_worker.datasets import Batch, Example, batch_indices, collate, generator, stream_seed
from armature_worker.training_state import load_training_state, save_training_state

ADAPTER = "default"
_PREFERENCES, _PROJECTIONS, _DROPOUT = 1, 2, 3
_GROUPS = ("shared", "conditioned")


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to one prompt; per attribute +1 where the first is better, -1 the second, 0 for a tie."""

    examples: Sequence[Example]
    signs: Sequence[float]


class ArmTrainer:
    """Trains the adapter of ``model`` in place.

    Args:
        model: A frozen backbone with a fresh PBLoRA adapter.
        pairs: All of the data.
        spec: What was asked for.
        context: Progress, cancellation and checkpoints.
    """

    def __init__(
        self, model: PeftModel, pairs: Sequence[LabelledPair], spec: ArmTrainSpec, context: RecipeContext
    ) -> None:
        self._model, self._pairs, self._spec, self._context = model, pairs, spec, context
        self._layers = adapter_layers(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=spec.training.learning_rate, weight_decay=spec.training.weight_decay
        )
        self._betas = torch.full((len(spec.attributes),), spec.loss.beta, device=context.device)
        self._saved = context.workdir / "training_state"

    def fit(self) -> None:
        """Run all steps, from the newest checkpoint if there is one.

        Raises:
            NonFiniteLoss: At the first step whose loss or gradient is NaN or infinite.
            TrainingStalled: A loss without a gradient, or an adapter that has no effect after all steps.
        """
        training = self._spec.training
        for layer in self._layers.values():
            layer.train()  # the adapter's dropout alone; the backbone stays in evaluation mode
        with torch.random.fork_rng():
            for step in range(self._resume(), training.steps):
                metrics = self._step(step)
                due = (step + 1) % training.checkpoint_every == 0 and step + 1 < training.steps
                if due:
                    self._save(step + 1)
                try:
                    self._context.progress("train", step + 1, training.steps, metrics)
                except Interrupted:
                    if not due:
                        self._save(step + 1)
                    raise
        self._model.eval()
        if not any(bool(layer.weights(ADAPTER).b.any()) for layer in self._layers.values()):
            raise TrainingStalled("the adapter is what it was before training", param="spec.training")

    def _step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns what there is to report."""
        spec, training = self._spec, self._spec.training
        indices = batch_indices(spec.seed, step, len(self._pairs), training.batch_size)
        pairs = [self._pairs[index] for index in indices]
        signs = torch.tensor([pair.signs for pair in pairs], device=self._context.device)
        drawn = self._draw_preferences(step, len(pairs))
        torch.manual_seed(stream_seed(spec.seed, step, _DROPOUT))
        recorder = None if spec.conflict.method == "sum" else ObjectiveGradients()
        margins = self._margins(pairs, drawn, recorder)
        losses = attribute_losses(margins, signs, drawn, self._betas)
        objectives = losses.sum(0) / len(pairs)
        loss = float(objectives.detach().sum())
        metrics = {"loss": loss, "learning_rate": learning_rate(training, step)}
        self._optimizer.zero_grad()
        if recorder is None:
            objectives.sum().backward()  # type: ignore[no-untyped-call]
        else:
            metrics |= self._resolve(margins, objectives, recorder, step)
        metrics["gradient_norm"] = self._check_gradient(loss, step)
        for group in self._optimizer.param_groups:
            group["lr"] = metrics["learning_rate"]
        self._optimizer.step()
        return metrics | self._losses_by_attribute(losses, signs, drawn)

    def _draw_preferences(self, step: int, count: int) -> Tensor:
        """One preference per pair, (pairs, K)."""
        given, stream = self._spec.preferences, generator(self._spec.seed, step, _PREFERENCES)
        attributes = len(self._spec.attributes)
        drawn = sample_preferences(count, attributes, given.vertices, given.centroid, given.concentration, stream)
        return drawn.to(self._context.device)

    def _margins(self, pairs: Sequence[LabelledPair], drawn: Tensor, recorder: ObjectiveGradients | None) -> Tensor:
        """How much more the ARM rewards each pair's first answer: both answers in one forward pass, (pairs,)."""
        batch = collate([example for pair in pairs for example in pair.examples], self._context.device)
        reference = None
        if self._spec.loss.form == "reference":
            with torch.no_grad(), self._model.disable_adapter():
                reference = self._log_probs(batch)
        with preferences(self._model, drawn.repeat_interleave(ROWS_PER_PAIR, 0), recorder=recorder):
            log_probs = self._log_probs(batch)
        rewards = compute_rewards(log_probs, batch.completion_mask.sum(-1), self._spec.loss.form, reference)
        return pair_margins(rewards)

    def _log_probs(self, batch: Batch) -> Tensor:
        output = self._model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
        return sequence_log_probs(output.logits, batch.ids, batch.completion_mask)

    def _resolve(
        self, margins: Tensor, objectives: Tensor, recorder: ObjectiveGradients, step: int
    ) -> dict[str, float]:
        """Set every parameter's gradient from all attributes' gradients; returns how far they conflicted."""
        recorder.backward(margins, objectives)
        parts = {key: split_parts(gradients) for key, gradients in recorder.layers.items()}
        groups = {
            group: [tensor for split in parts.values() for tensor in split[index]]
            for index, group in enumerate(_GROUPS)
        }
        conflict, stream = self._spec.conflict, generator(self._spec.seed, step, _PROJECTIONS)
        resolution = resolve_conflicts(groups, conflict.method, conflict.scope, stream)
        for key, split in parts.items():
            shared, conditioned = (
                tuple(combine_gradients(tensor, resolution.coefficients[group]) for tensor in part)
                for group, part in zip(_GROUPS, split, strict=True)
            )
            weights = self._layers[key].weights(ADAPTER)
            for parameter, gradient in zip(weights, join_parts(shared, conditioned), strict=True):
                parameter.grad = gradient
        return conflict_metrics(resolution)

    def _check_gradient(self, loss: float, step: int) -> float:
        """Clip the gradient and return its norm; refuse to go on where there is nothing to learn from."""
        limit = self._spec.training.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(f"the loss is {loss} at step {step + 1}", param="spec.training")
        if norm == 0 and loss > 0:
            raise TrainingStalled(f"no gradient reaches the adapter at step {step + 1}", param="spec.adapter")
        return norm

    def _losses_by_attribute(self, losses: Tensor, signs: Tensor, drawn: Tensor) -> dict[str, float]:
        """Each attribute's mean loss, a pair counting as much as its preference asks for the attribute."""
        asked = drawn.shape[1] * (drawn * (signs != 0)).sum(0)
        means = losses.detach().sum(0) / asked
        named = zip(self._spec.attributes, means.tolist(), strict=True)
        return {f"loss/{name}": value for name, value in named if math.isfinite(value)}

    def _save(self, step: int) -> None:
        save_training_state(self._saved, step, self._parameters, self._optimizer)
        self._context.save_checkpoint(step, self._saved)

    def _resume(self) -> int:
        checkpoint = self._context.load_checkpoint()
        if checkpoint is None:
            return 0
        step = load_training_state(checkpoint.path, self._parameters, self._optimizer)
        self._context.log(f"resumed after step {step}")
        return step


def learning_rate(training: ArmTraining, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero; ``step`` counts from 0."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def conflict_metrics(resolution: Resolution) -> dict[str, float]:
    """Per parameter group: the mean cosine between two attributes' gradients, and the share that is negative."""
    metrics = {}
    for group, cosines in resolution.cosines.items():
        upper = cosines[torch.ones_like(cosines).triu(1).bool()]
        known = upper[~upper.isnan()]
        if len(known):
            metrics[f"cosine/{group}"] = float(known.mean())
            metrics[f"conflicts/{group}"] = float((known < 0).float().mean())
    return metrics
