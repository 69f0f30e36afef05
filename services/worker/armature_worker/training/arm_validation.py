"""An ARM on pairs that it does not learn from, at a fixed grid of preferences: figures that steps can be compared by.

The training loss is taken under preferences drawn anew at every step, so it says little about progress.
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
    """Loss and pair accuracy of each attribute at each vertex of the simplex and at its centroid."""

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
        """Mean losses ``-log sigma(beta s m)`` and accuracies, (2, points, K); NaN for an attribute without labels."""
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
        """What :meth:`measure` found, by name."""
        names = self._spec.attributes
        points = []
        for preference, losses, accuracies in zip(self._grid.tolist(), *figures.tolist(), strict=True):
            named = zip(names, losses, accuracies, strict=True)
            known = [(name, loss, accuracy) for name, loss, accuracy in named if loss == loss]
            points.append(
                GridPoint(
                    preference=dict(zip(names, preference, strict=True)),
                    loss={name: loss for name, loss, _ in known},
                    accuracy={name: accuracy for name, _, accuracy in known},
                )
            )
        return ArmValidation(step=step, pairs=self._pairs, points=points)

    def metrics(self, figures: Tensor) -> dict[str, float]:
        """What :meth:`measure` found, for the job's events."""
        values = zip(self.columns, figures.flatten().tolist(), strict=True)
        return {f"validation/{column}": value for column, value in values if value == value}
