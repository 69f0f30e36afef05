"""Combine all objectives' gradients of a step into one update, and measure how far they conflict."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from armature.algorithms.conditioned_lora import AdapterWeights, join_parts, split_parts
from armature.algorithms.gradient_surgery import combine_gradients, cosine_matrix, gram_matrix, resolve_conflicts
from armature.contracts.specs.arm import ArmTrainSpec
from armature.modeling.layers import is_attention

PARTS = ("shared", "conditioned")
GROUPS = ("all", *PARTS, "attention", "mlp")
"""Groups of parameters with a cosine each: the whole adapter, either half of it, either kind of module."""


def resolve_gradients(
    layers: Mapping[str, AdapterWeights], spec: ArmTrainSpec, generator: torch.Generator
) -> tuple[dict[str, AdapterWeights], dict[str, Tensor]]:
    """Combine every layer's gradients, one for each objective, into one update.

    Args:
        layers: Gradients by layer, (objectives, ...) each.
        spec: Names the method and its scope.
        generator: Draws the order of projections.

    Returns:
        The update by layer, and the cosines (objectives, objectives) by group of parameters, NaN for a zero gradient.
    """
    parts = {key: dict(zip(PARTS, split_parts(gradients), strict=True)) for key, gradients in layers.items()}
    grams = {(key, part): gram_matrix(tensors) for key, split in parts.items() for part, tensors in split.items()}
    sums = {group: _sum_over(group, grams) for group in GROUPS}
    halves = {part: sums[part] for part in PARTS}
    coefficients = resolve_conflicts(halves, spec.conflict.method, spec.conflict.scope, generator)
    update = {
        key: join_parts(*(tuple(combine_gradients(t, coefficients[part]) for t in split[part]) for part in PARTS))
        for key, split in parts.items()
    }
    return update, {group: cosine_matrix(gram) for group, gram in sums.items()}


def _sum_over(group: str, grams: Mapping[tuple[str, str], Tensor]) -> Tensor:
    members = [
        gram
        for (key, part), gram in grams.items()
        if group in ("all", part, "attention" if is_attention(key) else "mlp")
    ]
    return torch.stack(members or [torch.zeros_like(next(iter(grams.values())))]).sum(0)


class Cosines:
    """Names of the cosines of :func:`resolve_gradients`: one per pair of objectives and group."""

    def __init__(self, objectives: list[str]) -> None:
        self._pairs = [f"{first}/{second}" for first, second in combinations(objectives, 2)]
        self._upper = torch.ones(len(objectives), len(objectives)).triu(1).bool()
        self.columns = [f"{group}/{pair}" for group in GROUPS for pair in self._pairs]

    def row(self, cosines: Mapping[str, Tensor]) -> list[float]:
        """List a value for every column."""
        return [value for group in GROUPS for value in cosines[group][self._upper].tolist()]

    def metrics(self, cosines: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute per half of the adapter: each known cosine, their mean, and the share of negative ones."""
        metrics = {}
        for part in PARTS:
            values = cosines[part][self._upper]
            known = values[~values.isnan()]
            if len(known):
                metrics[f"cosine/{part}"] = float(known.mean())
                metrics[f"conflicts/{part}"] = float((known < 0).float().mean())
            by_pair = zip(self._pairs, values.tolist(), strict=True)
            metrics |= {f"cosine/{part}/{pair}": value for pair, value in by_pair if value == value}  # not NaN
        return metrics
