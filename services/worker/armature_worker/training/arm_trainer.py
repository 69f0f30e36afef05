"""The training loop of an ARM: every random choice of step t is a function of (seed, t).

Rows, preferences, dropout and the order of projections need no saved random state, so a resumed run equals an
uninterrupted one, bit for bit on a CPU. A step may be split into micro-batches and over processes: the gradients of
each attribute are summed over the whole step first, and conflicts are resolved once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from armature.algorithms.conditioned_lora import AdapterWeights
from armature.algorithms.objective_gradients import ObjectiveGradients
from armature.algorithms.preference_loss import attribute_losses, mixture_losses, sample_preferences
from armature.contracts.artifacts import ArmValidation
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.size_defaults import Schedule
from armature.errors import InvalidRequest, NonFiniteLoss, TrainingStalled
from armature.modeling.adapters.peft_pblora import adapter_layers, enable_gradient_checkpointing, set_training
from armature_worker.context.ports import Interrupted, RecipeContext
from armature_worker.context.process_group import ProcessGroup, SingleProcess
from armature_worker.data.pair_batches import PairLayout
from armature_worker.data.preference_pairs import ArmData, signs_of
from armature_worker.data.tokenized import batch_indices, generator, stream_seed
from armature_worker.training.arm_plan import STATE
from armature_worker.training.arm_validation import GridValidation
from armature_worker.training.csv_log import CsvLog
from armature_worker.training.gradient_conflicts import Cosines, resolve_gradients
from armature_worker.training.reward_margins import compute_margins, reference_log_probs
from armature_worker.training.trainer_state import load_trainer_state, save_trainer_state

ADAPTER = "default"
_PREFERENCES, _PROJECTIONS, _DROPOUT = 1, 2, 3
_SOLVED = 1e-6
"""Loss up to which a step without a gradient is no stall: the pairs are told apart, and float32 has no smaller step."""
_PATIENCE = 3
"""Training stops after this many steps in a row without a gradient; in a single one, attributes may cancel out."""


@dataclass(frozen=True)
class TrainingRecord:
    """Records of a training run: files of figures by step, and the final validation figures."""

    files: list[Path]
    validation: ArmValidation | None


class ArmTrainer:
    """Trains the adapter of ``model`` in place.

    Args:
        model: A frozen backbone with a fresh adapter.
        data: Training and validation pairs.
        spec: The job's.
        context: Receives progress and checkpoints, raises on cancellation.
        group: The processes that train together, each with all of the data and the same adapter.
        restrict: Keeps the part of a layer's update that is applied; all of it by default.

    Raises:
        InvalidRequest: The pairs of a step can not be split evenly over the processes.
    """

    def __init__(
        self,
        model: PeftModel,
        data: ArmData,
        spec: ArmTrainSpec,
        context: RecipeContext,
        group: ProcessGroup | None = None,
        restrict: Callable[[AdapterWeights], AdapterWeights] | None = None,
    ) -> None:
        self._model, self._pairs, self._spec, self._context = model, data.training, spec, context
        self._group, self._restrict = group or SingleProcess(), restrict
        if spec.training.batch_size % self._group.size:
            message = f"{spec.training.batch_size} pairs do not divide evenly over {self._group.size} processes"
            raise InvalidRequest(message, param="spec.training.batch_size")
        self._schedule = spec.training.schedule(sum(parameter.numel() for parameter in model.parameters()))
        self._layers = adapter_layers(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=self._schedule.learning_rate, weight_decay=spec.training.weight_decay
        )
        self._betas = torch.full((len(spec.attributes),), spec.loss.beta, device=context.device)
        self._saved = context.workdir / STATE
        self._saved.mkdir(exist_ok=True)
        self._cosines = Cosines(spec.objectives)
        self._conflicts = CsvLog(self._saved / "conflicts.csv", self._cosines.columns)
        self._layout = PairLayout.of(model.get_base_model(), [*data.training, *data.held_out], context.device)
        self._validation = GridValidation(model, data.held_out, spec, self._layout) if data.held_out else None
        self._findings = CsvLog(self._saved / "validation.csv", self._validation.columns if self._validation else [])
        self._idle = 0

    def fit(self) -> TrainingRecord:
        """Run all steps, starting at the newest checkpoint if there is one.

        Raises:
            NonFiniteLoss: The loss or gradient of a step is NaN or infinite.
            TrainingStalled: No gradient reached the adapter for several steps, or training left it without effect.
        """
        training = self._spec.training
        if training.gradient_checkpointing:
            enable_gradient_checkpointing(self._model)
        for step in range(self._resume(), self._schedule.steps):
            set_training(self._model, True)
            metrics = self._step(step)
            done, last = step + 1, step + 1 == self._schedule.steps
            figures = None if last or done % self._spec.validation.every else self._validate(done)
            due = not last and done % training.checkpoint_every == 0
            if due:
                self._save(done)
            try:
                self._report("train", done, metrics)
                if self._validation is not None and figures is not None:
                    self._report("validate", done, self._validation.metrics(figures))
            except Interrupted:
                if not due:
                    self._save(done)
                raise
        set_training(self._model, False)
        if not any(bool(layer.weights(ADAPTER).b.any()) for layer in self._layers.values()):
            raise TrainingStalled("the adapter has no effect after all steps", param="spec.training")
        return self._conclude()

    def _step(self, step: int) -> dict[str, float]:
        """Take one optimiser step and return its metrics."""
        training, rate = self._spec.training, learning_rate(self._schedule, self._spec.training.warmup_steps, step)
        recorder = ObjectiveGradients()
        tally = self._accumulate(step, recorder)
        gradients = [tensor for name in sorted(recorder.layers) for tensor in recorder.layers[name]]
        self._group.all_reduce([tally, *gradients])
        update, cosines = resolve_gradients(recorder.layers, self._spec, generator(self._spec.seed, step, _PROJECTIONS))
        for key, layer in update.items():
            applied = layer if self._restrict is None else self._restrict(layer)
            for parameter, gradient in zip(self._layers[key].weights(ADAPTER), applied, strict=True):
                parameter.grad = gradient
        if (step + 1) % self._spec.conflict.record_every == 0:
            self._conflicts.append(step + 1, self._cosines.row(cosines))
        losses, weights = tally.tolist()
        metrics = {"loss": sum(losses) / training.batch_size, "learning_rate": rate}
        metrics["gradient_norm"] = self._check_gradient(metrics["loss"], step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        by_name = zip(self._spec.objectives, losses, weights, strict=True)
        means = {f"loss/{name}": loss / weight for name, loss, weight in by_name if weight}
        return metrics | self._cosines.metrics(cosines) | means

    def _accumulate(self, step: int, recorder: ObjectiveGradients) -> Tensor:
        """Add this process's part of every objective's gradient to ``recorder``, one micro-batch at a time.

        Returns:
            Sums over the pairs, (2, objectives): each objective's loss, and its weight.
        """
        spec, device, count = self._spec, self._context.device, self._spec.training.batch_size
        indices = batch_indices(spec.seed, step, len(self._pairs), count)
        drawn = self._draw_preferences(step)
        shard = self._group.shard(range(count))
        size = spec.training.micro_batch_size or len(shard)
        tally = torch.zeros(2, len(spec.objectives), device=device)
        for start in range(0, len(shard), size):
            rows = list(shard[start : start + size])
            pairs, p = [self._pairs[indices[row]] for row in rows], drawn[rows]
            batch, signs = self._layout.collate(pairs), signs_of(pairs, device)
            reference = reference_log_probs(self._model, spec.loss.form, batch)
            training = recorder, self._dropout_seeds(step, rows)
            margins = compute_margins(self._model, spec.loss.form, batch, p, reference, training)
            losses, weights = self._losses(margins, signs, p)
            recorder.backward(margins, losses.sum(0) / count)
            tally += torch.stack([losses.detach().sum(0), weights.sum(0)])
        return tally

    def _losses(self, margins: Tensor, signs: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each pair's loss for every objective, weighted, and the weights, (N, objectives) each."""
        share = self._spec.loss.mixture
        losses = attribute_losses(margins, signs, p, self._betas)
        weights = p.shape[1] * p * (signs != 0)
        if not share:
            return losses, weights
        mixture = mixture_losses(margins, signs, p, self._spec.loss.beta)
        counted = (p * signs).sum(-1) != 0
        return (
            torch.column_stack([losses, share * mixture]),
            torch.column_stack([weights, share * counted]),
        )

    def _draw_preferences(self, step: int) -> Tensor:
        """Draw one preference per pair of the step, (batch_size, K)."""
        settings, stream = self._spec.preferences, generator(self._spec.seed, step, _PREFERENCES)
        pairs, attributes = self._spec.training.batch_size, len(self._spec.attributes)
        count = pairs if settings.per == "row" else 1
        drawn = sample_preferences(
            count, attributes, settings.vertices, settings.centroid, settings.concentration, stream
        )
        return drawn.expand(pairs, -1).to(self._context.device)

    def _dropout_seeds(self, step: int, rows: Sequence[int]) -> Tensor:
        """Derive a dropout seed for each pair of ``rows``, (N,)."""
        return torch.tensor([stream_seed(self._spec.seed, step, _DROPOUT, row) for row in rows])

    def _check_gradient(self, loss: float, step: int) -> float:
        """Clip the gradient and return its norm before that; raise if it is not finite or stays zero."""
        limit = self._spec.training.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(f"the loss is {loss} at step {step + 1}", param="spec.training")
        self._idle = self._idle + 1 if norm == 0 and loss > _SOLVED else 0
        if self._idle == _PATIENCE:
            message = f"no gradient reached the adapter for {_PATIENCE} steps, up to step {step + 1}"
            raise TrainingStalled(message, param="spec.adapter")
        return norm

    def _validate(self, step: int) -> Tensor | None:
        """Measure the adapter on the held-out pairs, if there are any; all processes do the same."""
        if self._validation is None:
            return None
        figures = self._validation.measure()
        self._findings.append(step, figures.flatten().tolist())
        return figures

    def _conclude(self) -> TrainingRecord:
        steps, validation = self._schedule.steps, None
        figures = self._validate(steps)
        if self._validation is not None and figures is not None:
            self._report("validate", steps, self._validation.metrics(figures))
            validation = self._validation.describe(steps, figures)
        return TrainingRecord([log.path for log in (self._conflicts, self._findings) if log.path.exists()], validation)

    def _report(self, phase: str, step: int, metrics: dict[str, float]) -> None:
        if self._group.rank == 0:
            self._context.progress(phase, step, self._schedule.steps, metrics)

    def _save(self, step: int) -> None:
        if self._group.rank == 0:
            save_trainer_state(self._saved, step, self._parameters, self._optimizer)
            self._context.save_checkpoint(step, self._saved)

    def _resume(self) -> int:
        checkpoint = self._context.load_checkpoint()
        if checkpoint is None:
            return 0
        step = load_trainer_state(checkpoint.path, self._parameters, self._optimizer)
        for log in (self._conflicts, self._findings):
            log.restore(checkpoint.path)
        self._context.log(f"resumed after step {step}")
        return step


def learning_rate(schedule: Schedule, warmup_steps: int, step: int) -> float:
    """Compute the rate of ``step`` (from 0): linear warm-up, then half a cosine down to zero."""
    if step < warmup_steps:
        return schedule.learning_rate * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, schedule.steps - warmup_steps)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
