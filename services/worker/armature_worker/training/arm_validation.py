"""Validate an ARM on held-out pairs at a fixed grid of preferences, so that steps can be compared.

The training loss is not comparable: every step draws new preferences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import softplus

from armature.algorithms.preference_loss import preference_grid
from armature.contracts.artifacts import ArmValidation, GridPoint
from armature.contracts.specs.arm import ArmTrainSpec
from armature.modeling.adapters.peft_pblora import set_training
from armature_worker.data.pair_batches import PairBatch, PairLayout
from armature_worker.data.preference_pairs import LabelledPair, signs_of
from armature_worker.data.tokenized import by_length
from armature_worker.training.reward_margins import compute_margins, reference_log_probs

CENTROID = "centroid"


class GridValidation:
    """Loss and pair accuracy per attribute, at each vertex of the preference simplex and at its centroid."""

    def __init__(self, model: PeftModel, pairs: Sequence[LabelledPair], spec: ArmTrainSpec, layout: PairLayout) -> None:
        self._model, self._spec, self._pairs = model, spec, len(pairs)
        self._grid = preference_grid(len(spec.attributes), len(spec.attributes) + 1, seed=0)
        self._points = [*spec.attributes, CENTROID]
        size = spec.training.micro_batch_size or spec.training.batch_size
        longest = [max(pair.examples, key=lambda example: len(example.ids)) for pair in pairs]
        self._batches: list[tuple[PairBatch, Tensor]] = []
        for indices in by_length(longest, size):
            chosen = [pairs[index] for index in indices]
            self._batches.append((layout.collate(chosen), signs_of(chosen, layout.device)))
        self._references: list[Tensor | None] = []
        self.columns = [
            f"{figure}/{point}/{name}"
            for figure in ("loss", "accuracy")
            for point in self._points
            for name in spec.attributes
        ]

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Measure mean losses ``-log sigma(beta s m)`` and accuracies, (2, points, K); NaN without labels."""
        set_training(self._model, False)
        form = self._spec.loss.form
        if not self._references:  # the backbone never changes
            self._references = [reference_log_probs(self._model, form, batch) for batch, _ in self._batches]
        sums = torch.zeros(3, len(self._points), len(self._spec.attributes), dtype=torch.float64)
        for (batch, signs), reference in zip(self._batches, self._references, strict=True):
            for point, preference in enumerate(self._grid):
                drawn = preference.to(signs.device).expand(len(signs), -1)
                won = signs * compute_margins(self._model, form, batch, drawn, reference)[:, None]
                labelled = signs != 0
                figures = (labelled * softplus(-self._spec.loss.beta * won), won > 0, labelled)
                sums[:, point] += torch.stack([figure.double().sum(0) for figure in figures]).cpu()
        return sums[:2] / sums[2]

    def describe(self, step: int, figures: Tensor) -> ArmValidation:
        """Turn the figures of :meth:`measure` into the artifact's metadata."""
        names = self._spec.attributes
        points = []
        for preference, losses, accuracies in zip(self._grid.tolist(), *figures.tolist(), strict=True):
            by_name = zip(names, losses, accuracies, strict=True)
            known = [(name, loss, accuracy) for name, loss, accuracy in by_name if loss == loss]  # not NaN
            points.append(
                GridPoint(
                    preference=dict(zip(names, preference, strict=True)),
                    loss={name: loss for name, loss, _ in known},
                    accuracy={name: accuracy for name, _, accuracy in known},
                )
            )
        return ArmValidation(step=step, pairs=self._pairs, points=points)

    def metrics(self, figures: Tensor) -> dict[str, float]:
        """Turn the figures of :meth:`measure` into metrics for the job's events."""
        values = zip(self.columns, figures.flatten().tolist(), strict=True)
        return {f"validation/{column}": value for column, value in values if value == value}  # not NaN
