"""``harm_vector.build``: fine-tune a copy on harmful pairs, keep the top-m of what changed, subtract it (DiReg).

The harm-tuned weights exist in this process's memory only, inside :func:`_build_vector`: they are never
written to disk, checkpointed or published. A lost attempt starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from armature.algorithms.selection_rules import SELECTIONS
from armature.algorithms.task_vectors import SparseVector
from armature.algorithms.tensor_sources import Difference, LiveTensors, TensorSource, WithoutComponent
from armature.contracts.artifacts import CheckpointMetadata, TaskVectorMetadata
from armature.contracts.datasets import PromptCompletionRow
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec
from armature.errors import EmptyTaskVector, NonFiniteLoss
from armature.modeling.adapters import attach_adapter
from armature.modeling.checkpoints import describe_checkpoint, open_checkpoint, write_checkpoint
from armature.modeling.decoder_layers import chosen_linears
from armature.modeling.edited_checkpoints import write_edited_checkpoint
from armature.modeling.loading import load_model, load_safe_model, load_tokenizer
from armature.modeling.task_vector_files import StoredVector, VectorOrigin, write_task_vector
from armature_worker.context import Output, RecipeContext, RecipeResult
from armature_worker.datasets import (
    Example,
    batch_indices,
    collate,
    load_rows,
    report_rows,
    require_rows,
    stream_seed,
    tokenise,
)
from armature_worker.lineage import parents

_IGNORED = -100


def run(spec: HarmVectorBuildSpec, context: RecipeContext) -> RecipeResult:
    """Outputs: ``harm_vector`` and ``safe_checkpoint`` (``theta_b - scale * v_m``, loadable by stock transformers).

    Raises:
        InvalidDataset: No pair has a completion left within ``max_length``.
        NonFiniteLoss: Fine-tuning diverged.
        EmptyTaskVector: Fine-tuning changed nothing that the selection could keep.
    """
    base = context.artifacts["base_model"]
    assert isinstance(base.manifest.metadata, CheckpointMetadata)
    tokenizer = load_tokenizer(base.path)
    made_from = parents(context)
    origin = VectorOrigin(
        base_model_digest=base.manifest.metadata.model_digest,
        data={parent.role: parent.digest for parent in made_from if parent.role in context.files},
        rule=spec.selection.rule,
        density=spec.selection.density,
    )
    vector_folder, safe_folder = context.workdir / "harm_vector", context.workdir / "safe_checkpoint"
    examples = {role: _examples(spec, context, tokenizer, role) for role in origin.data}
    vector = _build_vector(spec, context, examples)
    context.progress("subtract", 0, 2)
    written = write_task_vector(vector, origin, vector_folder)
    _write_safe_checkpoint(base.path, written, spec.scale, safe_folder)
    context.progress("subtract", 1, 2)
    metadata = TaskVectorMetadata(
        base_model_digest=origin.base_model_digest,
        rule=origin.rule,
        density=origin.density,
        kept=written.kept,
        total=written.total,
        norm=written.norm,
        dense_norm=written.dense_norm,
        tensors=len(written.shapes),
    )
    safe = describe_checkpoint(open_checkpoint(safe_folder), tokenizer, base.manifest.metadata.license_note)
    context.progress("subtract", 2, 2)
    return RecipeResult(
        [
            Output("harm_vector", vector_folder, metadata, made_from),
            Output("safe_checkpoint", safe_folder, safe, made_from),
        ]
    )


def _write_safe_checkpoint(base: Path, vector: StoredVector, scale: float, folder: Path) -> None:
    """Shard by shard; through a loaded model for a family that renames its tensors as it loads them."""
    checkpoint = open_checkpoint(base)
    if vector.shapes.keys() <= checkpoint.tensors.keys():
        write_edited_checkpoint(checkpoint, vector, scale, folder)
    else:
        write_checkpoint(load_safe_model(base, vector, scale), load_tokenizer(base), folder)


def _examples(
    spec: HarmVectorBuildSpec, context: RecipeContext, tokenizer: PreTrainedTokenizerBase, role: str
) -> list[Example]:
    rows = load_rows(context.files[role], PromptCompletionRow)
    examples: list[Example] = []
    for row in rows:
        examples += tokenise(tokenizer, row.prompt, [row.completion], spec.training.max_length) or []
    require_rows(examples, len(rows), f"spec.{role}")
    report_rows(context, role, [[example] for example in examples], len(rows))
    return examples


def _build_vector(
    spec: HarmVectorBuildSpec, context: RecipeContext, examples: Mapping[str, list[Example]]
) -> SparseVector:
    """Fine-tune, guard, and keep the selected entries; the tuned weights go out of scope here."""
    difference = _tune(spec, context, examples["harmful_pairs"], "train")
    if "benign_pairs" in examples:
        difference = WithoutComponent(difference, _tune(spec, context, examples["benign_pairs"], "guard"))
        context.log(f"the capability guard took out {difference.coefficient:.6g} times the benign difference")
    context.progress("select", 0, 1)
    seed = stream_seed(spec.seed, 1)
    try:
        vector = SELECTIONS[spec.selection.rule](difference, spec.selection.density, seed)
    except ValueError as error:
        raise NonFiniteLoss(f"fine-tuning left weights that are not finite: {error}") from error
    if not vector.kept:
        raise EmptyTaskVector("fine-tuning changed none of the selected weights", param="spec.training")
    return vector


def _tune(spec: HarmVectorBuildSpec, context: RecipeContext, examples: list[Example], phase: str) -> TensorSource:
    """What fine-tuning a copy of the base on the examples changes."""
    context.progress("load", 0, 1)
    model = load_model(context.artifacts["base_model"].path, context.device, torch.float32)
    linears = chosen_linears(model, spec.selection.targets, spec.selection.layers)
    return _TUNERS[spec.training.method](model, linears, _Trainer(spec, context, examples, phase))


class _Trainer:
    """Constant-rate AdamW on the completions' tokens. Dropout stays off: the difference is the data's, not noise."""

    def __init__(self, spec: HarmVectorBuildSpec, context: RecipeContext, examples: list[Example], phase: str) -> None:
        self.seed = spec.seed
        self.training: HarmTraining = spec.training
        self._context = context
        self._examples = examples
        self._phase = phase

    def fit(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        """Run all steps; raises NonFiniteLoss at the first one whose loss is NaN or infinite."""
        steps, size = self.training.steps, self.training.batch_size
        optimizer = torch.optim.AdamW(parameters, lr=self.training.learning_rate, weight_decay=0.0)
        for step in range(steps):
            rows = batch_indices(self.seed, step, len(self._examples), size)
            batch = collate([self._examples[row] for row in rows], self._context.device)
            logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits[:, :-1]
            labels = batch.ids.masked_fill(~batch.completion_mask, _IGNORED)[:, 1:]
            loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORED)
            if not bool(loss.isfinite()):
                raise NonFiniteLoss(f"the loss is {loss.item()} at step {step + 1}", param="spec.training")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self._context.progress(self._phase, step + 1, steps, {"loss": loss.item()})


def _tune_selected(model: PreTrainedModel, linears: dict[str, nn.Module], trainer: _Trainer) -> TensorSource:
    """Fine-tune the selected weights at full rank; the rest stays frozen, since a vector could not undo it there."""
    model.requires_grad_(False)
    weights = {f"{name}.weight": module.get_parameter("weight") for name, module in linears.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad = True
    trainer.fit(model, weights.values())
    return Difference(LiveTensors(weights), LiveTensors(before))


def _tune_lora(model: PreTrainedModel, linears: dict[str, nn.Module], trainer: _Trainer) -> TensorSource:
    """A LoRA on the selected weights, ``v = (alpha / r) B A``, formed in float32."""
    config = LoraConfig(
        r=trainer.training.lora_rank,
        lora_alpha=trainer.training.lora_alpha,
        target_modules=list(linears),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linears.values()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(trainer.seed, 2))
        adapted = attach_adapter(model, config)
    trainer.fit(adapted, (parameter for parameter in adapted.parameters() if parameter.requires_grad))
    layers = dict(adapted.get_base_model().named_modules())
    with torch.no_grad():
        return LiveTensors(
            {f"{name}.weight": layers[name].get_delta_weight("default").detach().float() for name in linears}
        )


_TUNERS: dict[str, Callable[[PreTrainedModel, dict[str, nn.Module], _Trainer], TensorSource]] = {
    "full": _tune_selected,
    "lora": _tune_lora,
}
