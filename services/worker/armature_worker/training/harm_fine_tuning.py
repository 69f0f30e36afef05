"""What fine-tuning on harmful pairs changes: the difference that harm vectors are selected from (DiReg).

The harm-tuned weights are in memory while :func:`tune_difference` runs. Their difference to the base goes to an unnamed
file in the job's private directory, which is gone with its last reader or with the process. Neither is checkpointed or
published: a lost attempt tunes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from armature.algorithms.temp_file_tensors import TempFileTensors
from armature.algorithms.tensor_sources import Difference, LiveTensors, TensorSource, WithoutComponent
from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.datasets import PromptCompletionRow
from armature.contracts.specs.harm_vector import HarmTraining
from armature.errors import NonFiniteLoss
from armature.modeling.adapters.arm import attach_adapter
from armature.modeling.adapters.offloading import count_on_disk, create_lora, load_offloaded_model
from armature.modeling.answer_logits import logits_at
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.layers import chosen_linears
from armature_worker.context.ports import RecipeContext
from armature_worker.data.tokenized import (
    Example,
    batch_indices,
    collate,
    load_rows,
    report_rows,
    require_rows,
    stream_seed,
    tokenise,
)
from armature_worker.host.memory_estimate import tuning_memory

LayerChoice = Literal["all", "upper_half"] | list[int]


@dataclass(frozen=True)
class Tuning:
    """How a copy is fine-tuned, and where: the weights of every layer choice together.

    ``param`` is the field of the spec that holds targets and layers.
    """

    training: HarmTraining
    targets: str
    layers: Sequence[LayerChoice]
    seed: int
    param: str

    def linears(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The projections to tune, by name.

        Raises:
            InvalidRequest: A layer that the model does not have, or nothing is left.
        """
        return {
            name: module
            for choice in self.layers
            for name, module in chosen_linears(model, self.targets, choice, self.param).items()
        }


def load_examples(
    context: RecipeContext, tokenizer: PreTrainedTokenizerBase, role: str, max_length: int
) -> list[Example]:
    """The pairs of a data set, tokenised; those cut before their completion are counted and dropped.

    Raises:
        InvalidDataset: A bad row, or no pair is left.
    """
    rows = load_rows(context.files[role], PromptCompletionRow)
    examples: list[Example] = []
    for row in rows:
        examples += tokenise(tokenizer, row.prompt, [row.completion], max_length) or []
    require_rows(examples, len(rows), f"spec.{role}")
    report_rows(context, role, [[example] for example in examples], len(rows))
    return examples


def tune_difference(
    tuning: Tuning, context: RecipeContext, harmful: list[Example], benign: list[Example] | None
) -> TensorSource:
    """What harmful pairs change, in float32; with benign ones, without what those change too.

    Raises:
        NonFiniteLoss: Fine-tuning diverged.
        InvalidRequest: The chosen layers are not there.
    """
    difference = _tune(tuning, context, harmful, "train")
    if benign is None:
        return difference
    guarded = WithoutComponent(difference, _tune(tuning, context, benign, "guard"))
    context.log(f"the capability guard took out {guarded.coefficient:.6g} times the benign difference")
    return guarded


def _tune(tuning: Tuning, context: RecipeContext, examples: list[Example], phase: str) -> TensorSource:
    """What fine-tuning a copy of the base on the examples changes; the copy is gone when this returns."""
    context.progress("load", 0, 1)
    model = _load(tuning, context)
    trainer = _Trainer(tuning, context, examples, phase)
    return TempFileTensors(_TUNERS[tuning.training.method](model, tuning.linears(model), trainer), context.workdir)


def _load(tuning: Tuning, context: RecipeContext) -> PreTrainedModel:
    """Offloaded, as many layers stay in memory as half of what is free beside the rest of the job has room for."""
    base = context.artifacts["base_model"]
    if not tuning.training.offload:
        return load_model(base.path, context.device, torch.float32)
    assert isinstance(base.manifest.metadata, CheckpointMetadata)
    needs = {context.device: tuning_memory(tuning.training, tuning.layers, base.manifest.metadata).total}
    room = {name: max(0, free - needs.get(name, 0)) // 2 for name, free in context.free_memory().items()}
    model = load_offloaded_model(base.path, context.device, torch.float32, room)
    context.log(f"layers that are read from disk whenever they run: {count_on_disk(model)}")
    return model


class _Trainer:
    """Constant-rate AdamW on the completions' tokens. Dropout stays off: the difference is the data's, not noise."""

    def __init__(self, tuning: Tuning, context: RecipeContext, examples: list[Example], phase: str) -> None:
        self.seed, self.training, self.device = tuning.seed, tuning.training, context.device
        self._context = context
        self._examples = examples
        self._phase = phase

    def fit(self, model: PreTrainedModel | PeftModel, parameters: Iterable[nn.Parameter]) -> None:
        """Run all steps; raises NonFiniteLoss at the first one whose loss is NaN or infinite."""
        steps, size = self.training.steps, self.training.batch_size
        optimizer = torch.optim.AdamW(parameters, lr=self.training.learning_rate, weight_decay=0.0)
        for step in range(steps):
            rows = batch_indices(self.seed, step, len(self._examples), size)
            batch = collate([self._examples[row] for row in rows], self._context.device)
            with logits_at(model, batch.predictors):
                logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits[0]
            loss = cross_entropy(logits.float(), batch.targets)
            if not bool(loss.isfinite()):
                raise NonFiniteLoss(f"the loss is {loss.item()} at step {step + 1}", param="spec.training")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self._context.progress(self._phase, step + 1, steps, {"loss": loss.item()})


def _tune_selected(model: PreTrainedModel, linears: Mapping[str, nn.Module], trainer: _Trainer) -> TensorSource:
    """Fine-tune the selected weights at full rank; the rest stays frozen, since a vector could not undo it there."""
    model.requires_grad_(False)
    weights = {f"{name}.weight": module.get_parameter("weight") for name, module in linears.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad = True
    trainer.fit(model, weights.values())
    return Difference(LiveTensors(weights), LiveTensors(before))


def _tune_lora(model: PreTrainedModel, linears: Mapping[str, nn.Module], trainer: _Trainer) -> TensorSource:
    """A LoRA on the selected weights, ``v = (alpha / r) B A``, formed in float32."""
    config = LoraConfig(
        r=trainer.training.lora_rank,
        lora_alpha=trainer.training.lora_alpha,
        target_modules=list(linears),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linears.values()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(trainer.seed, 2))
        if trainer.training.offload:
            adapted = create_lora(model, config, trainer.device)
        else:
            adapted = attach_adapter(model, config)
    trainer.fit(adapted, (parameter for parameter in adapted.parameters() if parameter.requires_grad))
    layers = dict(adapted.get_base_model().named_modules())
    shapes = {f"{name}.weight": tuple(layers[name].base_layer.weight.shape) for name in linears}
    return LiveTensors(_LoraDeltas({f"{name}.weight": layers[name] for name in linears}), shapes)


class _LoraDeltas(Mapping[str, torch.Tensor]):
    """A LoRA's delta of each weight, formed when it is asked for."""

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


_TUNERS: dict[str, Callable[[PreTrainedModel, Mapping[str, nn.Module], _Trainer], TensorSource]] = {
    "full": _tune_selected,
    "lora": _tune_lora,
}
