"""Shared by the recipes that make harm vectors: their metadata, and the errors of failed training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from pathlib import Path

from armature.algorithms.task_vectors import SparseVector
from armature.contracts.artifacts import Parent, TaskVectorMetadata, TrainedWith
from armature.errors import EmptyTaskVector, NonFiniteLoss
from armature.modeling.checkpoints.configs import build_on_meta
from armature.modeling.checkpoints.loading import load_config
from armature.modeling.checkpoints.task_vector import StoredVector
from armature.modeling.layers import weight_share


def keep_entries(select: Callable[[], SparseVector]) -> SparseVector:
    """Run ``select`` on a fine-tuning difference and check the resulting vector.

    Raises:
        NonFiniteLoss: The difference is not finite.
        EmptyTaskVector: The difference is zero everywhere.
    """
    try:
        vector = select()
    except ValueError as error:
        raise NonFiniteLoss(f"fine-tuning left weights that are not finite: {error}") from error
    if not vector.kept:
        raise EmptyTaskVector("fine-tuning changed none of the selected weights", param="spec.training")
    return vector


def origin_data(made_from: Sequence[Parent], roles: Collection[str]) -> dict[str, str]:
    """Pick the digests of the data sets that shaped the vector, by role."""
    return {parent.role: parent.digest for parent in made_from if parent.role in roles}


def describe_vector(
    written: StoredVector, examples: Mapping[str, Sized], base: Path, used: TrainedWith
) -> TaskVectorMetadata:
    """Build a vector's metadata from its files, examples, base folder and training settings."""
    return TaskVectorMetadata(
        base_model_digest=written.origin.base_model_digest,
        rule=written.origin.rule,
        density=written.origin.density,
        kept=written.kept,
        total=written.total,
        norm=written.norm,
        dense_norm=written.dense_norm,
        tensors=len(written.shapes),
        selected_share=weight_share(build_on_meta(load_config(base)), written.shapes),
        rows={role: len(learned) for role, learned in examples.items()},
        trained_with=used,
    )
