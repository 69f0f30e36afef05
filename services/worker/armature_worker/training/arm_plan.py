"""What an ARM's spec leaves open: rate and steps by the model's size, micro-batch by free memory."""

from __future__ import annotations

import torch

from armature.contracts.artifacts import CheckpointMetadata, TrainedWith
from armature.contracts.base import canonical_json
from armature.contracts.specs.arm import ArmTrainSpec
from armature_worker.context.ports import RecipeContext
from armature_worker.data.preference_pairs import ArmData
from armature_worker.data.tokenized import lengths_of
from armature_worker.host.memory_estimate import arm_memory
from armature_worker.training.micro_batches import fit_micro_batch

STATE = "training_state"
"""Folder of the job's directory that its checkpoints copy."""
_FILE = "used.json"


def plan_training(spec: ArmTrainSpec, data: ArmData, context: RecipeContext) -> TrainedWith:
    """Choose what the spec leaves open; call it before a model is loaded: the estimate counts the weights.

    All processes of the job agree on the smallest of their micro-batches, and an attempt that resumes takes those of
    the one before: sums in another order would differ in their last bits.
    """
    used = _of_last_attempt(context) or _choose(spec, data, context)
    folder = context.workdir / STATE
    folder.mkdir(exist_ok=True)
    (folder / _FILE).write_bytes(canonical_json(used.model_dump(mode="json")))
    context.log(f"{used.steps} steps at a learning rate of {used.learning_rate:g}")
    return used


def settle(spec: ArmTrainSpec, used: TrainedWith) -> ArmTrainSpec:
    """Return the spec with nothing left open."""
    return spec.model_copy(update={"training": spec.training.model_copy(update=used.model_dump())})


def _of_last_attempt(context: RecipeContext) -> TrainedWith | None:
    saved = context.load_checkpoint()
    file = saved.path / _FILE if saved else None
    return TrainedWith.model_validate_json(file.read_bytes()) if file and file.exists() else None


def _choose(spec: ArmTrainSpec, data: ArmData, context: RecipeContext) -> TrainedWith:
    artifacts, training = context.artifacts, spec.training
    base = (artifacts.get("backbone_model") or artifacts["base_model"]).manifest.metadata
    assert isinstance(base, CheckpointMetadata)
    schedule = training.schedule(base.parameters)
    size = training.micro_batch_size or _fit(spec, data, context, base)
    return TrainedWith(learning_rate=schedule.learning_rate, steps=schedule.steps, micro_batch_size=size)


def _fit(spec: ArmTrainSpec, data: ArmData, context: RecipeContext, base: CheckpointMetadata) -> int:
    pairs = [*data.training, *data.held_out]
    lengths = lengths_of(example for pair in pairs for example in pair.examples)
    share, group = spec.training.batch_size // spec.training.processes, context.process_group
    fitting = torch.zeros(group.size, dtype=torch.long, device=context.device)
    fitting[group.rank] = fit_micro_batch(context, share, lambda rows: arm_memory(spec, base, lengths, rows).total)
    group.all_reduce([fitting])
    return int(fitting.min())
