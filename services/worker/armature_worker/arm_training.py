"""The training loop of an ARM: every random choice of step t is a function of (seed, t).

Its rows, their preferences and the order of projections need no saved random state, so a resumed run equals an
uninterrupted one, to the bit on a CPU. A step's rows may be cut into micro-batches and shared among processes: the
gradients of all attributes are summed over the whole step first, and conflicts are resolved once, on the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from armature.algorithms.gradient_surgery import Resolution, combine_gradients, resolve_conflicts
from armature.algorithms.objective_gradients import ObjectiveGradients
from armature.algorithms.pblora import join_parts, split_parts
from armature.algorithms.preference_loss import attribute_losses, sample_preferences
from armature.contracts.specs.arm import ArmTraining, ArmTrainSpec
from armature.errors import InvalidRequest, NonFiniteLoss, TrainingStalled
from armature.modeling.peft_pblora import adapter_layers
from armature_worker.arm_margins import LabelledPair, compute_margins
from armature_worker.context import Interrupted, RecipeContext
from armature_worker.datasets import batch_indices, generator, stream_seed
from armature_worker.ranks import Ranks, SingleRank
from armature_worker.training_state import load_training_state, save_training_state

ADAPTER = "default"
_PREFERENCES, _PROJECTIONS, _DROPOUT = 1, 2, 3
_GROUPS = ("shared", "conditioned")


class ArmTrainer:
    """Trains the adapter of ``model`` in place.

    Args:
        model: A frozen backbone with a fresh PBLoRA adapter.
        pairs: All of the data.
        spec: What was asked for.
        context: Progress, cancellation and checkpoints.
        ranks: The processes that train together, each with all of the data and the same adapter.

    Raises:
        InvalidRequest: The pairs of a step can not be shared evenly.
    """

    def __init__(
        self,
        model: PeftModel,
        pairs: Sequence[LabelledPair],
        spec: ArmTrainSpec,
        context: RecipeContext,
        ranks: Ranks | None = None,
    ) -> None:
        self._model, self._pairs, self._spec, self._context = model, pairs, spec, context
        self._ranks = ranks or SingleRank()
        if spec.training.batch_size % self._ranks.size:
            raise InvalidRequest(
                f"a batch of {spec.training.batch_size} pairs can not be shared by {self._ranks.size} processes",
                param="spec.training.batch_size",
            )
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
                    self._report(step + 1, metrics)
                except Interrupted:
                    if not due:
                        self._save(step + 1)
                    raise
        self._model.eval()
        if not any(bool(layer.weights(ADAPTER).b.any()) for layer in self._layers.values()):
            raise TrainingStalled("the adapter is what it was before training", param="spec.training")

    def _step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns what there is to report."""
        training = self._spec.training
        rate = learning_rate(training, step)
        recorder = ObjectiveGradients()
        tally = self._accumulate(step, recorder)
        self._ranks.add([tally, *(tensor for name in sorted(recorder.layers) for tensor in recorder.layers[name])])
        resolution = self._resolve(recorder, step)
        losses, asked = tally.tolist()
        loss = sum(losses) / training.batch_size
        norm = self._check_gradient(loss, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        by_attribute = {
            f"loss/{name}": value / share
            for name, value, share in zip(self._spec.attributes, losses, asked, strict=True)
            if share
        }
        return {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            **conflict_metrics(resolution),
            **by_attribute,
        }

    def _accumulate(self, step: int, recorder: ObjectiveGradients) -> Tensor:
        """Bring this process's part of every attribute's gradient to ``recorder``, one micro-batch at a time.

        Returns:
            Sums over the pairs, (2, K): each attribute's loss, and how much of it the preferences asked for.
        """
        spec, training = self._spec, self._spec.training
        indices = batch_indices(spec.seed, step, len(self._pairs), training.batch_size)
        drawn = self._draw_preferences(step)
        share = self._ranks.share(range(training.batch_size))
        size = training.micro_batch_size or len(share)
        torch.manual_seed(stream_seed(spec.seed, step, _DROPOUT, self._ranks.rank))
        tally = torch.zeros(2, drawn.shape[1], device=self._context.device)
        for start in range(0, len(share), size):
            rows = list(share[start : start + size])
            pairs, p = [self._pairs[indices[row]] for row in rows], drawn[rows]
            signs = torch.tensor([pair.signs for pair in pairs], device=self._context.device)
            margins = compute_margins(self._model, spec.loss.form, pairs, p, recorder)
            losses = attribute_losses(margins, signs, p, self._betas)
            recorder.backward(margins, losses.sum(0) / training.batch_size)
            tally += torch.stack([losses.detach().sum(0), p.shape[1] * (p * (signs != 0)).sum(0)])
        return tally

    def _draw_preferences(self, step: int) -> Tensor:
        """One preference per pair of the step, (batch_size, K)."""
        given, stream = self._spec.preferences, generator(self._spec.seed, step, _PREFERENCES)
        count, attributes = self._spec.training.batch_size, len(self._spec.attributes)
        drawn = sample_preferences(count, attributes, given.vertices, given.centroid, given.concentration, stream)
        return drawn.to(self._context.device)

    def _resolve(self, recorder: ObjectiveGradients, step: int) -> Resolution:
        """Set every parameter's gradient from all attributes' gradients."""
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
        return resolution

    def _check_gradient(self, loss: float, step: int) -> float:
        """Clip the gradient and return its norm; refuse to go on where there is nothing to learn from."""
        limit = self._spec.training.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(f"the loss is {loss} at step {step + 1}", param="spec.training")
        if norm == 0 and loss > 0:
            raise TrainingStalled(f"no gradient reaches the adapter at step {step + 1}", param="spec.adapter")
        return norm

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        if self._ranks.rank == 0:
            self._context.progress("train", step, self._spec.training.steps, metrics)

    def _save(self, step: int) -> None:
        if self._ranks.rank == 0:
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
