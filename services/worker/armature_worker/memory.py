"""How much device memory a job will take, from its spec and its base model's metadata alone: a table by kind.

Counted are the weights, gradients and optimizer moments of what is trained in full, and the logits of the largest
batch at the spec's own ``max_length``. Adapters, hidden activations and allocator waste are not: they depend on the
architecture, so a job that is admitted may still run out of memory, and then says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.base import BaseSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOAT32 = 4
_ROWS_PER_PAIR = 2
_LOSS_COPIES = 3
"""Of the logits in float32 while a loss is computed: themselves, their log-softmax, its gradient."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that each process of a job takes on its device."""

    weights: int
    training: int = 0
    """Gradients, optimizer moments and kept copies of weights that are trained in full."""
    logits: int = 0
    knobs: str = "take a smaller model"
    """What lowers it."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.training + self.logits

    @property
    def advice(self) -> str:
        """Where the bytes go, and what to do about it."""
        parts = {"weights": self.weights, "training state": self.training, "logits": self.logits}
        return f"{', '.join(f'{name} {size}' for name, size in parts.items() if size)}: {self.knobs}"


def estimate_memory(spec: BaseSpec, base: CheckpointMetadata) -> Estimate:
    """What one process of the job takes; for a kind without a row, such as one that streams, it can not be told."""
    estimate = _ESTIMATES.get(getattr(spec, "kind", ""))
    return Estimate(0) if estimate is None else estimate(spec, base)


def _weights_alone(spec: BaseSpec, base: CheckpointMetadata) -> Estimate:
    return Estimate(base.parameters * _ITEM_BYTES[base.dtype])


def _arm(spec: ArmTrainSpec | ArmExtendSpec, base: CheckpointMetadata) -> Estimate:
    """A frozen backbone, and both answers of each pair in one pass."""
    training = spec.training
    pairs = training.micro_batch_size or training.batch_size
    rows = _ROWS_PER_PAIR * min(pairs, training.batch_size // training.processes)
    sharers = training.processes if training.sharding == "fsdp" else 1
    return Estimate(
        weights=base.parameters * _ITEM_BYTES[training.dtype or base.dtype] // sharers,
        logits=rows * training.max_length * base.vocab_size * _LOSS_COPIES * _FLOAT32,
        knobs="lower training.micro_batch_size or training.max_length, or set training.sharding to fsdp",
    )


def _harm_vector(spec: HarmVectorBuildSpec, base: CheckpointMetadata) -> Estimate:
    return _tuning(spec.training, base)


def _tuning(training: HarmTraining, base: CheckpointMetadata) -> Estimate:
    """A float32 copy. In full: gradient, two moments and the values before; a LoRA leaves these out.

    Offloaded layers are not on the device; what stays there (embeddings, head, one layer) is not known here.
    """
    return Estimate(
        weights=0 if training.offload else base.parameters * _FLOAT32,
        training=4 * base.parameters * _FLOAT32 if training.method == "full" else 0,
        logits=training.batch_size * training.max_length * base.vocab_size * _LOSS_COPIES * _FLOAT32,
        knobs="set training.method to lora, with training.offload, or lower training.batch_size or training.max_length",
    )


def _harm_vector_sweep(spec: HarmVectorSweepSpec, base: CheckpointMetadata) -> Estimate:
    """The base stays loaded while a copy is tuned; answering takes less than that."""
    tuning = _tuning(spec.training, base)
    return replace(tuning, weights=tuning.weights + base.parameters * _ITEM_BYTES[base.dtype])


def _evaluation(spec: EvaluationRunSpec, base: CheckpointMetadata) -> Estimate:
    """The subject, and one position's logits of every request for both streams."""
    return Estimate(
        weights=base.parameters * _ITEM_BYTES[base.dtype],
        logits=2 * spec.sampling.batch_size * base.vocab_size * _LOSS_COPIES * _FLOAT32,
        knobs="lower sampling.batch_size",
    )


_ESTIMATES: dict[str, Callable[[Any, CheckpointMetadata], Estimate]] = {
    "arm.train": _arm,
    "arm.extend": _arm,
    "arm.import": _weights_alone,
    "harm_vector.build": _harm_vector,
    "harm_vector.sweep": _harm_vector_sweep,
    "evaluation.run": _evaluation,
}
