"""``harm_vector.build``: fine-tune a copy on harmful pairs, keep the top-m of what changed, subtract it (DiReg).

The harm-tuned weights exist in this process's memory only, between :func:`_train` and the selection: they are never
written to disk, checkpointed or published. A lost attempt starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from armature.algorithms.task_vectors import SELECTIONS, Difference, SparseVector, select_top
from armature.contracts.artifacts import CheckpointMetadata, TaskVectorMetadata
from armature.contracts.datasets import PromptCompletionRow
from armature.contracts.specs.harm_vector import HarmTraining, HarmVectorBuildSpec
from armature.errors import EmptyTaskVector, NonFiniteLoss
from armature.modeling.adapters import attach_adapter
from armature.modeling.checkpoints import describe_checkpoint, open_checkpoint, write_checkpoint
from armature.modeling.decoder_layers import decoder_linears
from armature.modeling.loading import load_model, load_safe_model, load_tokenizer
from armature.modeling.task_vector_files import write_task_vector
from armature_worker.context import Output, RecipeContext, RecipeResult
from armature_worker.datasets import (
    Example,
    batch_indices,
    collate,
    generator,
    load_rows,
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
    vector = _build_vector(spec, context, _examples(spec, context, tokenizer))
    context.progress("subtract", 0, 2)
    vector_folder, safe_folder = context.workdir / "harm_vector", context.workdir / "safe_checkpoint"
    write_task_vector(vector, vector_folder)
    write_checkpoint(load_safe_model(base.path, vector_folder, spec.scale), tokenizer, safe_folder)
    context.progress("subtract", 1, 2)
    metadata = TaskVectorMetadata(
        base_model_digest=base.manifest.metadata.model_digest,
        rule=spec.selection.rule,
        density=spec.selection.density,
        kept=vector.kept,
        total=vector.total,
        norm=vector.norm,
        dense_norm=vector.dense_norm,
        tensors=len(vector.tensors),
    )
    safe = describe_checkpoint(open_checkpoint(safe_folder), tokenizer, base.manifest.metadata.license_note)
    context.progress("subtract", 2, 2)
    return RecipeResult(
        [
            Output("harm_vector", vector_folder, metadata, parents(context)),
            Output("safe_checkpoint", safe_folder, safe, parents(context)),
        ]
    )


def _examples(spec: HarmVectorBuildSpec, context: RecipeContext, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    rows = load_rows(context.files["harmful_pairs"], PromptCompletionRow)
    examples: list[Example] = []
    for row in rows:
        examples += tokenise(tokenizer, row.prompt, [row.completion], spec.training.max_length) or []
    require_rows(examples, len(rows), "spec.harmful_pairs")
    if len(examples) < len(rows):
        context.log(f"{len(rows) - len(examples)} of {len(rows)} pairs have no completion within max_length", "warn")
    return examples


def _build_vector(spec: HarmVectorBuildSpec, context: RecipeContext, examples: list[Example]) -> SparseVector:
    """Fine-tune, and keep the selected entries; the tuned weights go out of scope here."""
    context.progress("load", 0, 1)
    model = load_model(context.artifacts["base_model"].path, context.device, torch.float32)
    linears = decoder_linears(model)
    difference = _TUNERS[spec.training.method](model, linears, _Trainer(spec, context, examples))
    context.progress("select", 0, 1)
    try:
        vector = select_top(difference, spec.selection.density)
    except ValueError as error:
        raise NonFiniteLoss(f"fine-tuning left weights that are not finite: {error}") from error
    if not vector.kept:
        raise EmptyTaskVector("fine-tuning changed none of the selected weights", param="spec.training")
    return SELECTIONS[spec.selection.rule](vector, generator(spec.seed, 1))


class _Trainer:
    """Constant-rate AdamW on the completions' tokens. Dropout stays off: the difference is the data's, not noise."""

    def __init__(self, spec: HarmVectorBuildSpec, context: RecipeContext, examples: list[Example]) -> None:
        self.seed = spec.seed
        self.training: HarmTraining = spec.training
        self._context = context
        self._examples = examples

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
            self._context.progress("train", step + 1, steps, {"loss": loss.item()})


def _tune_selected(model: PreTrainedModel, linears: dict[str, nn.Module], trainer: _Trainer) -> Mapping[str, Tensor]:
    """Fine-tune the selected weights at full rank; the rest stays frozen, since a vector could not undo it there."""
    model.requires_grad_(False)
    weights = {f"{name}.weight": module.get_parameter("weight") for name, module in linears.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad = True
    trainer.fit(model, weights.values())
    return Difference(weights, before, list(weights))


def _tune_lora(model: PreTrainedModel, linears: dict[str, nn.Module], trainer: _Trainer) -> Mapping[str, Tensor]:
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
        return {f"{name}.weight": layers[name].get_delta_weight("default").detach().float() for name in linears}


_TUNERS: dict[str, Callable[[PreTrainedModel, dict[str, nn.Module], _Trainer], Mapping[str, Tensor]]] = {
    "full": _tune_selected,
    "lora": _tune_lora,
}
