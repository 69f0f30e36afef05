"""Estimate a job's device memory from spec, base model and data: a formula per job kind.

Counted are the weights; gradients and optimizer moments of weights that are trained in full; and, for a batch of the
data's longest rows, cut at the spec's ``max_length``, the logits of the answers and the activations that the layers
keep for the backward pass:

    kept = 2 * (weights of the layers) / hidden size     numbers per token, in the model's compute dtype

Weights / hidden size is the sum of the widths of the layers' matrices; norms, activation functions and attention keep
about as much again. Attention scores are not kept: the kernels recompute them. Layers below the lowest trained one keep
nothing. Of layers that are recomputed, each keeps its input, and one at a time keeps everything.

Where the spec leaves the micro-batch to the platform, one row or pair is counted: the job takes as many as fit
(:mod:`armature_worker.training.micro_batches`). On tiny models the sum is within a factor of 1.5 of the measured peak
(tests). Not counted are adapters and the allocator's fragmentation: an admitted job may still fail with
``out_of_memory``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.judges import Judge, LikelihoodRatioJudge
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.base import BaseSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec, Layers
from armature.contracts.specs.pairs import PairsGenerateSpec

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOAT32 = 4
_ROWS_PER_PAIR = 2
JUDGED_LOGITS = 1 << 26
"""Numbers of the logits over the answers that a likelihood-ratio judge scores at once; one answer may have more."""
_LOSS_COPIES = 3
"""Float32 copies of the logits while a loss is computed: the logits, their log-softmax, its gradient."""


@dataclass(frozen=True)
class RowLengths:
    """Upper bounds on the tokens of a data set's rows."""

    prompt: int
    answer: int
    """With the end of the turn."""

    def cut(self, max_length: int) -> RowLengths:
        """Return the bounds after rows are cut at ``max_length``."""
        return RowLengths(min(self.prompt, max_length), min(self.answer, max_length))

    def row(self, max_length: int) -> int:
        """Return the bound on a whole row that is cut at ``max_length``."""
        return min(self.prompt + self.answer, max_length)

    @classmethod
    def unknown(cls, max_length: int) -> RowLengths:
        """Return the bounds without knowledge of the data: all that the cut leaves may be an answer."""
        return cls(0, max_length)


@dataclass(frozen=True)
class Estimate:
    """Memory that each process of a job needs on its device, in bytes."""

    weights: int
    training: int = 0
    """Gradients, optimizer moments and initial values of weights that are trained in full."""
    logits: int = 0
    activations: int = 0
    """What the layers keep for the backward pass; in an evaluation, the KV cache."""
    knobs: str = "take a smaller model"
    """Which settings of the spec lower the estimate."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self._parts.values())

    @property
    def advice(self) -> str:
        """The parts by name, and which settings lower them."""
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
    spec: BaseSpec,
    base: CheckpointMetadata,
    arm_backbone: CheckpointMetadata | None = None,
    lengths: RowLengths | None = None,
) -> Estimate:
    """Estimate what one process of the job needs; 0 (unknown) for kinds without a formula.

    Args:
        spec: The job's.
        base: The model that the job trains on or evaluates.
        arm_backbone: The model of a separate ARM.
        lengths: Of the rows that the job trains on or answers; None: as long as the spec allows.
    """
    if isinstance(spec, EvaluationRunSpec):
        return _evaluation(spec, base, arm_backbone, lengths.prompt if lengths else 0)
    estimate = _ESTIMATES.get(getattr(spec, "kind", ""))
    return Estimate(0) if estimate is None else estimate(spec, base, lengths)


def _weights_alone(spec: BaseSpec, base: CheckpointMetadata, lengths: RowLengths | None) -> Estimate:
    return Estimate(base.parameters * _ITEM_BYTES[base.dtype])


def arm_memory(
    spec: ArmTrainSpec | ArmExtendSpec, base: CheckpointMetadata, lengths: RowLengths | None, pairs: int | None = None
) -> Estimate:
    """Estimate a frozen backbone with both answers of each pair in one forward pass.

    Args:
        spec: The job's.
        base: The backbone.
        lengths: Of the pairs' answers; None: as long as the spec allows.
        pairs: In a forward pass; None: what the spec says, or one.
    """
    training = spec.training
    known = lengths or RowLengths.unknown(training.max_length)
    rows = _ROWS_PER_PAIR * min(pairs or training.micro_batch_size or 1, training.batch_size // training.processes)
    tokens = rows * known.row(training.max_length)
    item = _ITEM_BYTES[training.dtype or base.dtype]
    lowest = _lowest_layer([spec.adapter.layers], base) if isinstance(spec, ArmTrainSpec) else 0
    return Estimate(
        weights=base.parameters * item // (training.processes if training.sharding == "fsdp" else 1),
        logits=_logits(rows * known.cut(training.max_length).answer, base),
        activations=_kept(tokens * item, base, lowest, recomputed=training.gradient_checkpointing),
        knobs="set training.gradient_checkpointing, lower training.micro_batch_size or training.max_length, "
        "or set training.sharding to fsdp",
    )


def _harm_vector(spec: HarmVectorBuildSpec, base: CheckpointMetadata, lengths: RowLengths | None) -> Estimate:
    return fine_tuning_memory(spec.training, [spec.selection.layers], base, lengths)


def fine_tuning_memory(
    training: HarmTraining,
    layers: Sequence[Layers],
    base: CheckpointMetadata,
    lengths: RowLengths | None = None,
    rows: int | None = None,
) -> Estimate:
    """Estimate fine-tuning of a float32 copy of ``base``.

    Full fine-tuning adds gradient, two moments and the initial values of the weights in the chosen layers; a LoRA does
    not. An offloaded copy has the embeddings and one layer at a time on the device, and recomputes each layer.

    Args:
        training: The spec's.
        layers: The choices of layers, whose union is trained.
        base: The model.
        lengths: Of the rows; None: as long as ``training`` allows.
        rows: In a forward pass; None: what ``training`` says, or one.
    """
    lowest, size = _lowest_layer(layers, base), rows or training.micro_batch_size or 1
    known = lengths or RowLengths.unknown(training.max_length)
    tokens = size * known.row(training.max_length)
    held = _without_layers(base) if training.offload else base.parameters
    return Estimate(
        weights=held * _FLOAT32,
        training=4 * _layer_weights(base) * _FLOAT32 if training.method == "full" else 0,
        logits=_logits(size * known.cut(training.max_length).answer, base),
        activations=_kept(tokens * _FLOAT32, base, lowest, recomputed=training.offload),
        knobs="set training.method to lora, with training.offload, "
        "or lower training.micro_batch_size or training.max_length",
    )


def _harm_vector_sweep(spec: HarmVectorSweepSpec, base: CheckpointMetadata, lengths: RowLengths | None) -> Estimate:
    """Estimate the base and a copy that is fine-tuned beside it; sampling answers needs less than that."""
    estimate = fine_tuning_memory(spec.training, spec.grid.layers, base, lengths)
    return replace(estimate, weights=estimate.weights + base.parameters * _ITEM_BYTES[base.dtype])


def _evaluation(
    spec: EvaluationRunSpec, base: CheckpointMetadata, arm_backbone: CheckpointMetadata | None, prompt: int
) -> Estimate:
    """Estimate the weights and, per stream, a position's logits and the KV cache of prompt and answer.

    The model that carries the ARM runs two streams per request. The base runs one if the ARM is separate, and one more
    for an instruction.
    """
    instructed = 1 if spec.sda else 0
    streams = [(base, 2 + instructed)] if arm_backbone is None else [(base, 1 + instructed), (arm_backbone, 2)]
    tokens = prompt + spec.sampling.max_tokens
    parts = [_sampling(model, count * spec.sampling.batch_size, tokens) for model, count in streams]
    return Estimate(
        weights=sum(part.weights for part in parts),
        logits=sum(part.logits for part in parts),
        activations=sum(part.activations for part in parts),
        knobs="lower sampling.batch_size or sampling.max_tokens",
    )


def _pairs(spec: PairsGenerateSpec, largest: CheckpointMetadata, lengths: RowLengths | None) -> Estimate:
    """Estimate the largest of the teachers and judges, which are loaded one after another."""
    tokens = spec.sampling.max_tokens + (lengths.prompt if lengths else 0)
    estimate = _sampling(largest, spec.sampling.batch_size, tokens)
    judged = JUDGED_LOGITS * _LOSS_COPIES * _FLOAT32 if any(map(_scores, spec.judges)) else 0
    knobs = "lower sampling.batch_size or sampling.max_tokens"
    return replace(estimate, logits=max(estimate.logits, judged), knobs=knobs)


def _scores(judge: Judge) -> bool:
    return isinstance(judge, LikelihoodRatioJudge)


def _sampling(model: CheckpointMetadata, streams: int, tokens: int) -> Estimate:
    item = _ITEM_BYTES[model.dtype]
    numbers = 2 * (model.layers or 0) * (model.hidden_size or 0)
    return Estimate(
        weights=model.parameters * item,
        logits=_logits(streams, model),
        activations=streams * tokens * numbers * item,
    )


def _logits(positions: int, base: CheckpointMetadata) -> int:
    return positions * base.vocab_size * _LOSS_COPIES * _FLOAT32


def _kept(token_bytes: int, base: CheckpointMetadata, lowest: int, *, recomputed: bool) -> int:
    """Estimate what the layers from ``lowest`` on keep; 0 if the checkpoint's width is unknown.

    Args:
        token_bytes: Tokens of the batch, times the bytes of a number.
        base: The model.
        lowest: The first layer that a gradient passes through.
        recomputed: Whether the backward pass recomputes the layers.
    """
    if base.hidden_size is None or base.layers is None:
        return 0
    per_layer = 2 * _layer_weights(base) // base.layers // base.hidden_size
    layers = base.layers - lowest
    return token_bytes * (per_layer + layers * base.hidden_size if recomputed else layers * per_layer)


def _without_layers(base: CheckpointMetadata) -> int:
    """Count the weights on the device while layers are offloaded: one layer and all that is not a layer."""
    if base.hidden_size is None or base.layers is None:
        return 0
    in_layers = _layer_weights(base)
    return base.parameters - in_layers + in_layers // base.layers


def _layer_weights(base: CheckpointMetadata) -> int:
    """Count all weights but the embeddings; an untied output head counts as part of the layers."""
    return max(0, base.parameters - base.vocab_size * (base.hidden_size or 0))


def _lowest_layer(choices: Sequence[Layers], base: CheckpointMetadata) -> int:
    depth = base.layers or 0
    named = {"all": 0, "upper_half": depth // 2}
    return min(depth, *(named[choice] if isinstance(choice, str) else min(choice) for choice in choices))


_ESTIMATES: dict[str, Callable[..., Estimate]] = {
    "arm.train": arm_memory,
    "arm.extend": arm_memory,
    "arm.import": _weights_alone,
    "harm_vector.build": _harm_vector,
    "harm_vector.sweep": _harm_vector_sweep,
    "pairs.generate": _pairs,
}
