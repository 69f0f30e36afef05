"""How much device memory a job will take, from its spec and its base model's metadata alone: a table by kind.

Counted are weights, gradients and optimizer moments of what is trained in full, and, for the largest batch at the
spec's own ``max_length``, the logits and what the layers keep for the backward pass:

    kept = 2 * (weights of the layers) / hidden size     numbers per token, in the type that the model computes in

The weights over the hidden size are the widths of the layers' matrices, added up; norms, activation functions and
attention keep about as much again. Attention scores are not kept: the kernels compute them once more. Below the lowest
trained layer nothing is. Layers that are recomputed keep their input alone, and one of them everything at a time.

On tiny models the sum is within a factor of 1.5 of the measured peak (tests). Adapters, what allocators waste, and in
evaluations the prompts are not counted, so a job that is admitted may still run out of memory, and then says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.base import BaseSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec, Layers

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
    activations: int = 0
    """What the layers keep of a batch; in an evaluation, its keys and values."""
    knobs: str = "take a smaller model"
    """What lowers it."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self._parts.values())

    @property
    def advice(self) -> str:
        """Where the bytes go, and what to do about it."""
        return f"{', '.join(f'{name} {size}' for name, size in self._parts.items() if size)}: {self.knobs}"

    @property
    def _parts(self) -> dict[str, int]:
        return {
            "weights": self.weights,
            "training state": self.training,
            "logits": self.logits,
            "activations": self.activations,
        }


def estimate_memory(
    spec: BaseSpec, base: CheckpointMetadata, arm_backbone: CheckpointMetadata | None = None
) -> Estimate:
    """What one process of the job takes; for a kind without a row, such as one that streams, it can not be told.

    Args:
        spec: The job's.
        base: The model that it trains on or judges.
        arm_backbone: The model that its ARM is on, where that is another one.
    """
    estimate = _ESTIMATES.get(getattr(spec, "kind", ""))
    if estimate is None:
        return Estimate(0)
    return estimate(spec, base) if arm_backbone is None else estimate(spec, base, arm_backbone)


def _weights_alone(spec: BaseSpec, base: CheckpointMetadata) -> Estimate:
    return Estimate(base.parameters * _ITEM_BYTES[base.dtype])


def _arm(spec: ArmTrainSpec | ArmExtendSpec, base: CheckpointMetadata) -> Estimate:
    """A frozen backbone, and both answers of each pair in one pass."""
    training = spec.training
    pairs = training.micro_batch_size or training.batch_size
    rows = _ROWS_PER_PAIR * min(pairs, training.batch_size // training.processes)
    tokens = rows * training.max_length
    item = _ITEM_BYTES[training.dtype or base.dtype]
    lowest = _lowest_layer([spec.adapter.layers], base) if isinstance(spec, ArmTrainSpec) else 0
    return Estimate(
        weights=base.parameters * item // (training.processes if training.sharding == "fsdp" else 1),
        logits=_logits(tokens, base),
        activations=_kept(tokens * item, base, lowest, recomputed=training.gradient_checkpointing),
        knobs="set training.gradient_checkpointing, lower training.micro_batch_size or training.max_length, "
        "or set training.sharding to fsdp",
    )


def _harm_vector(spec: HarmVectorBuildSpec, base: CheckpointMetadata) -> Estimate:
    return fine_tuning_memory(spec.training, [spec.selection.layers], base)


def fine_tuning_memory(training: HarmTraining, layers: Sequence[Layers], base: CheckpointMetadata) -> Estimate:
    """Of a float32 copy that is tuned. In full: gradient, two moments and the values before; a LoRA leaves these out.

    Of offloaded layers one is on the device, beside the embeddings; each is recomputed.
    """
    tokens, lowest = training.batch_size * training.max_length, _lowest_layer(layers, base)
    held = _without_layers(base) if training.offload else base.parameters
    return Estimate(
        weights=held * _FLOAT32,
        training=4 * base.parameters * _FLOAT32 if training.method == "full" else 0,
        logits=_logits(tokens, base),
        activations=_kept(tokens * _FLOAT32, base, lowest, recomputed=training.offload),
        knobs="set training.method to lora, with training.offload, or lower training.batch_size or training.max_length",
    )


def _harm_vector_sweep(spec: HarmVectorSweepSpec, base: CheckpointMetadata) -> Estimate:
    """The base stays loaded while a copy is tuned; answering takes less than that."""
    estimate = fine_tuning_memory(spec.training, spec.grid.layers, base)
    return replace(estimate, weights=estimate.weights + base.parameters * _ITEM_BYTES[base.dtype])


def _evaluation(
    spec: EvaluationRunSpec, base: CheckpointMetadata, arm_backbone: CheckpointMetadata | None = None
) -> Estimate:
    """The subject, and for all streams of every request one position's logits, and the answer's keys and values.

    Two streams run on the model that the ARM is on. The base runs one of its own beside such a model, and one more
    below an instruction.
    """
    below = 1 if spec.sda else 0
    streams = [(base, 2 + below)] if arm_backbone is None else [(base, 1 + below), (arm_backbone, 2)]
    parts = [_answering(spec, model, count * spec.sampling.batch_size) for model, count in streams]
    return Estimate(
        weights=sum(part.weights for part in parts),
        logits=sum(part.logits for part in parts),
        activations=sum(part.activations for part in parts),
        knobs="lower sampling.batch_size or sampling.max_tokens",
    )


def _answering(spec: EvaluationRunSpec, model: CheckpointMetadata, streams: int) -> Estimate:
    item = _ITEM_BYTES[model.dtype]
    numbers = 2 * (model.layers or 0) * (model.hidden_size or 0)
    return Estimate(
        weights=model.parameters * item,
        logits=_logits(streams, model),
        activations=streams * spec.sampling.max_tokens * numbers * item,
    )


def _logits(positions: int, base: CheckpointMetadata) -> int:
    return positions * base.vocab_size * _LOSS_COPIES * _FLOAT32


def _kept(token_bytes: int, base: CheckpointMetadata, lowest: int, *, recomputed: bool) -> int:
    """What the layers from ``lowest`` on keep; of checkpoints that do not say how wide they are, nothing is known.

    Args:
        token_bytes: Tokens of the batch, times the bytes of a number.
        base: The model.
        lowest: The first layer that a gradient goes through.
        recomputed: Whether layers are, in the backward pass.
    """
    if base.hidden_size is None or base.layers is None:
        return 0
    of_a_layer = 2 * _layer_weights(base) // base.layers // base.hidden_size
    through = base.layers - lowest
    return token_bytes * (of_a_layer + through * base.hidden_size if recomputed else through * of_a_layer)


def _without_layers(base: CheckpointMetadata) -> int:
    """How many weights are left where the layers come one at a time."""
    if base.hidden_size is None or base.layers is None:
        return 0
    in_layers = _layer_weights(base)
    return base.parameters - in_layers + in_layers // base.layers


def _layer_weights(base: CheckpointMetadata) -> int:
    """All but the embeddings; an output head of its own is counted among the layers."""
    return max(0, base.parameters - base.vocab_size * (base.hidden_size or 0))


def _lowest_layer(choices: Sequence[Layers], base: CheckpointMetadata) -> int:
    depth = base.layers or 0
    named = {"all": 0, "upper_half": depth // 2}
    return min(depth, *(named[choice] if isinstance(choice, str) else min(choice) for choice in choices))


_ESTIMATES: dict[str, Callable[..., Estimate]] = {
    "arm.train": _arm,
    "arm.extend": _arm,
    "arm.import": _weights_alone,
    "harm_vector.build": _harm_vector,
    "harm_vector.sweep": _harm_vector_sweep,
    "evaluation.run": _evaluation,
}
