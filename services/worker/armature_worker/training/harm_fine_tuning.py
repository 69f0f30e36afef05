"""Fine-tune copies of the base on harmful and on safe answers; harm vectors come from it (DiReg).

The tuned weights exist in memory only while :func:`learn_difference` runs, one copy after the other. Their differences
to the base go to unnamed files in the job's private directory, which the kernel removes with the last reader or with
the process. Nothing is checkpointed or published: an attempt that follows a lost one fine-tunes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from armature.algorithms.temp_file_tensors import TempFileTensors
from armature.algorithms.tensor_sources import Difference, LiveTensors, TensorSource, WithoutComponent
from armature.contracts.artifacts import CheckpointMetadata, TrainedWith
from armature.contracts.datasets import PromptCompletionRow
from armature.contracts.specs.harm_vector import Guard, HarmTraining
from armature.errors import InvalidRequest, NonFiniteLoss
from armature.modeling.adapters.arm import attach_adapter
from armature.modeling.adapters.offloading import count_on_disk, create_lora, load_offloaded_model
from armature.modeling.answer_logits import logits_at
from armature.modeling.checkpoints.configs import build_on_meta
from armature.modeling.checkpoints.loading import load_config, load_model
from armature.modeling.layers import chosen_weights, split_experts
from armature_worker.context.ports import RecipeContext
from armature_worker.data.mixed_examples import MixedExamples
from armature_worker.data.tokenized import (
    Example,
    RowEncoder,
    collate,
    lengths_of,
    load_rows,
    report_rows,
    require_rows,
    stream_seed,
)
from armature_worker.host.memory_estimate import fine_tuning_memory
from armature_worker.models.selection import report_share
from armature_worker.training.micro_batches import fit_micro_batch

LayerChoice = Literal["all", "upper_half"] | list[int]


@dataclass(frozen=True)
class FineTuning:
    """How a copy of the base is fine-tuned, and which weights: those of all layer choices together.

    ``param`` is the field of the spec that holds targets and layers, for error messages. ``used`` are the settings
    that the spec may leave open (:func:`plan_fine_tuning`).
    """

    training: HarmTraining
    used: TrainedWith
    targets: str
    layers: Sequence[LayerChoice]
    guard: Guard
    seed: int
    param: str

    def weights(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """Choose the weights to fine-tune, by name.

        Raises:
            InvalidRequest: The model lacks one of the layers, or nothing is chosen.
        """
        return {
            name: weight
            for choice in self.layers
            for name, weight in chosen_weights(model, self.targets, choice, self.param).items()
        }


@dataclass(frozen=True)
class TuningData:
    """The pairs that a difference is learned from: harmful answers, safe ones, and benign pairs."""

    harmful: list[Example]
    safe: list[Example] | None = None
    benign: list[Example] | None = None


def load_examples(context: RecipeContext, encoder: RowEncoder, max_length: int) -> list[Example]:
    """Load and tokenise the pairs of a data set; count and drop pairs cut before their completion.

    Raises:
        InvalidDataset: A row is bad, the chat template refuses one, or no pair is left.
    """
    role = encoder.role
    rows = load_rows(context, role, PromptCompletionRow)
    examples: list[Example] = []
    for row in rows:
        examples += encoder.tokenise(row.prompt, [row.completion], max_length) or []
    require_rows(examples, len(rows), f"spec.{role}")
    report_rows(context, role, [[example] for example in examples], len(rows))
    return examples


def plan_fine_tuning(
    training: HarmTraining, layers: Sequence[LayerChoice], context: RecipeContext, examples: Iterable[Example]
) -> TrainedWith:
    """Choose what the spec leaves open: rate and steps by the model, micro-batch by free memory.

    Call it before a model is loaded: the estimate counts the weights.
    """
    base = context.artifacts["base_model"].manifest.metadata
    assert isinstance(base, CheckpointMetadata)
    lengths, schedule = lengths_of(examples), training.schedule(base.parameters)

    def needs(rows: int) -> int:
        return fine_tuning_memory(training, layers, base, lengths, rows).total

    size = training.micro_batch_size or fit_micro_batch(context, training.batch_size, needs)
    context.log(f"{schedule.steps} steps at a learning rate of {schedule.learning_rate:g}")
    return TrainedWith(learning_rate=schedule.learning_rate, steps=schedule.steps, micro_batch_size=size)


def learn_difference(settings: FineTuning, context: RecipeContext, data: TuningData) -> TensorSource:
    """Return what fine-tuning on harmful answers changes, less what tuning on safe answers changes.

    Without safe answers it is the change from the base. Benign pairs guard capability as ``settings.guard`` says.

    Raises:
        NonFiniteLoss: Fine-tuning diverged.
        InvalidRequest: The model lacks one of the layers, or experts were to be offloaded.
    """
    _check_selection(settings, context)
    guard, benign = settings.guard, data.benign or []
    rehearsed = benign if guard.method == "rehearse" else []

    def tune(examples: list[Example], phase: str) -> TensorSource:
        return _fine_tune(settings, context, MixedExamples(examples, rehearsed, guard.share), phase)

    difference = tune(data.harmful, "train")
    if data.safe is not None:
        difference = Difference(difference, tune(data.safe, "contrast"))
    if not benign or guard.method == "rehearse":
        return difference
    guarded = WithoutComponent(difference, tune(benign, "guard"))
    context.log(f"the capability guard took out {guarded.coefficient:.6g} times the benign difference")
    return guarded


def _check_selection(settings: FineTuning, context: RecipeContext) -> None:
    """Report the share of the weights that is selected, before anything is loaded."""
    model = build_on_meta(load_config(context.artifacts["base_model"].path))
    weights = settings.weights(model)
    if settings.training.offload and (experts := split_experts(weights, model)[1]):
        raise InvalidRequest(
            f"{experts[0]} holds a layer's experts, which are not offloaded; choose other targets, or no offload",
            param="spec.training.offload",
        )
    report_share(context, model, weights)


def _fine_tune(settings: FineTuning, context: RecipeContext, examples: MixedExamples, phase: str) -> TensorSource:
    """Fine-tune a copy of the base on ``examples``; return the change in float32 and drop the copy."""
    context.progress("load", 0, 1)
    model = _load_copy(settings, context)
    trainer = _Trainer(settings, context, examples, phase)
    train = _METHODS[settings.training.method]
    return TempFileTensors(train(model, settings.weights(model), trainer), context.workdir)


def _load_copy(settings: FineTuning, context: RecipeContext) -> PreTrainedModel:
    """Load a float32 copy of the base; an offloaded one keeps layers in half of the spare memory."""
    base = context.artifacts["base_model"]
    if not settings.training.offload:
        return load_model(base.path, context.device, torch.float32)
    assert isinstance(base.manifest.metadata, CheckpointMetadata)
    needed = fine_tuning_memory(
        settings.training, settings.layers, base.manifest.metadata, rows=settings.used.micro_batch_size
    )
    needs = {context.device: needed.total}
    room = {name: max(0, free - needs.get(name, 0)) // 2 for name, free in context.free_memory().items()}
    model = load_offloaded_model(base.path, context.device, torch.float32, room)
    context.log(f"layers read from disk at every pass: {count_on_disk(model)}")
    return model


class _Trainer:
    """AdamW at a constant rate, without dropout: its noise would become part of the difference."""

    def __init__(self, settings: FineTuning, context: RecipeContext, examples: MixedExamples, phase: str) -> None:
        self.seed, self.training, self.device = settings.seed, settings.training, context.device
        self.used = settings.used
        self._context = context
        self._examples = examples
        self._phase = phase

    def fit(self, model: PreTrainedModel | PeftModel, parameters: Iterable[nn.Parameter]) -> None:
        """Run all steps; raises NonFiniteLoss at the first one whose loss is NaN or infinite."""
        steps = self.used.steps
        optimizer = torch.optim.AdamW(parameters, lr=self.used.learning_rate, weight_decay=0.0)
        for step in range(steps):
            optimizer.zero_grad()
            loss = self._accumulate(model, self._examples.batch(self.seed, step, self.training.batch_size))
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"the loss is {loss} at step {step + 1}", param="spec.training")
            optimizer.step()
            self._context.progress(self._phase, step + 1, steps, {"loss": loss})

    def _accumulate(self, model: PreTrainedModel | PeftModel, rows: Sequence[Example]) -> float:
        """Add the gradient of the step's mean loss, one micro-batch at a time; return the loss."""
        device, size = self._context.device, self.used.micro_batch_size
        batches = [collate(rows[start : start + size], "cpu") for start in range(0, len(rows), size)]
        tokens, total = sum(len(batch.targets) for batch in batches), 0.0
        for batch in (one.to(device) for one in batches):
            with logits_at(model, batch.predictors):
                logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits[0]
            loss = cross_entropy(logits.float(), batch.targets, reduction="sum") / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total


def _train_weights(model: PreTrainedModel, weights: Mapping[str, nn.Parameter], trainer: _Trainer) -> TensorSource:
    """Train the selected weights at full rank; freeze the others, which the vector does not reach."""
    model.requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad = True
    trainer.fit(model, weights.values())
    return Difference(LiveTensors(weights), LiveTensors(before))


def _train_lora(model: PreTrainedModel, weights: Mapping[str, nn.Parameter], trainer: _Trainer) -> TensorSource:
    """Train a LoRA on the selected weights: ``v = (alpha / r) B A``, computed in float32."""
    modules, experts = split_experts(weights, model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    config = LoraConfig(
        r=trainer.training.lora_rank,
        lora_alpha=trainer.training.lora_alpha,
        target_modules=modules,
        target_parameters=experts or None,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in modules),
    )
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(trainer.seed, 2))
        if trainer.training.offload:
            adapted = create_lora(model, config, trainer.device)
        else:
            adapted = attach_adapter(model, config)
    trainer.fit(adapted, (parameter for parameter in adapted.parameters() if parameter.requires_grad))
    return LiveTensors(_LoraDeltas(_lora_layers(adapted.get_base_model(), modules)), shapes)


def _lora_layers(model: nn.Module, modules: Sequence[str]) -> dict[str, nn.Module]:
    """Return PEFT's layers by the parameter that each adapts.

    PEFT nests the layers of one module's parameters in each other.
    """
    layers = {f"{name}.weight": model.get_submodule(name) for name in modules}
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            layers[f"{name.replace('.base_layer', '')}.{module.parameter_name}"] = module
    return layers


class _LoraDeltas(Mapping[str, torch.Tensor]):
    """A LoRA's delta of each weight, computed on access."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers

    @torch.no_grad()
    def __getitem__(self, name: str) -> torch.Tensor:
        delta: torch.Tensor = self._layers[name].get_delta_weight("default")
        return delta.float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


_METHODS: dict[str, Callable[[PreTrainedModel, Mapping[str, nn.Parameter], _Trainer], TensorSource]] = {
    "full": _train_weights,
    "lora": _train_lora,
}
