"""``harm_vector.build``: fine-tune on harmful pairs, keep the top m changes, subtract them (DiReg)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from armature.algorithms.selection_rules import SELECTIONS
from armature.algorithms.task_vectors import SparseVector
from armature.contracts.artifacts import CheckpointMetadata, TrainedWith
from armature.contracts.specs.harm_vector import HarmVectorBuildSpec
from armature.modeling.checkpoints.editing import Edits, write_safe_checkpoint
from armature.modeling.checkpoints.folder import describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.modeling.checkpoints.task_vector import VectorOrigin, write_task_vector
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents
from armature_worker.data.tokenized import Example, RowEncoder, stream_seed
from armature_worker.training.harm_fine_tuning import (
    FineTuning,
    LayerChoice,
    TuningData,
    learn_difference,
    load_examples,
    plan_fine_tuning,
)
from armature_worker.training.harm_vector_metadata import describe_vector, keep_entries, origin_data


def run(spec: HarmVectorBuildSpec, context: RecipeContext) -> RecipeResult:
    """Build a harm vector. Outputs: ``harm_vector``, ``safe_checkpoint`` (``theta_b - scale * v_m``).

    Raises:
        InvalidDataset: No pair has a completion left within ``max_length``.
        NonFiniteLoss: Fine-tuning diverged.
        EmptyTaskVector: Fine-tuning changed none of the selected weights.
    """
    base = context.artifacts["base_model"]
    assert isinstance(base.manifest.metadata, CheckpointMetadata)
    tokenizer = load_tokenizer(base.path)
    made_from = parents(context)
    origin = VectorOrigin(
        base_model_digest=base.manifest.metadata.model_digest,
        data=origin_data(made_from, ("harmful_pairs", "safe_pairs", "benign_pairs")),
        rule=spec.selection.rule,
        density=spec.selection.density,
    )
    vector_folder, safe_folder = context.workdir / "harm_vector", context.workdir / "safe_checkpoint"
    examples = {
        role: load_examples(context, RowEncoder.of(context, role, tokenizer, spec.chat), spec.training.max_length)
        for role in origin.data
    }
    layers: list[LayerChoice] = [spec.selection.layers]
    used = plan_fine_tuning(spec.training, layers, context, chain(*examples.values()))
    vector = _build_vector(spec, context, examples, used)
    context.progress("subtract", 0, 2)
    written = write_task_vector(vector, origin, vector_folder)
    write_safe_checkpoint(base.path, Edits(written, spec.scale), safe_folder)
    context.progress("subtract", 1, 2)
    safe = describe_checkpoint(open_checkpoint(safe_folder), tokenizer, base.manifest.metadata.license_note)
    context.progress("subtract", 2, 2)
    return RecipeResult(
        [
            Output("harm_vector", vector_folder, describe_vector(written, examples, base.path, used), made_from),
            Output("safe_checkpoint", safe_folder, safe, made_from),
        ]
    )


def _build_vector(
    spec: HarmVectorBuildSpec, context: RecipeContext, examples: Mapping[str, list[Example]], used: TrainedWith
) -> SparseVector:
    """Fine-tune, guard, and keep the selected entries; the difference goes out of scope here."""
    selection = spec.selection
    layers: list[LayerChoice] = [selection.layers]
    settings = FineTuning(spec.training, used, selection.targets, layers, spec.guard, spec.seed, "spec.selection")
    data = TuningData(examples["harmful_pairs"], examples.get("safe_pairs"), examples.get("benign_pairs"))
    difference = learn_difference(settings, context, data)
    context.progress("select", 0, 1)
    select = SELECTIONS[selection.rule]
    return keep_entries(lambda: select(difference, selection.density, stream_seed(spec.seed, 1), context.workdir))
