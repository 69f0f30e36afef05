"""``base_model.import``: copy a model's files, refuse unsafe ones, hash them, load the model once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.specs.base_model import BaseModelImportSpec, FilesSource, FolderSource, HubSource
from armature.errors import ImportNotAllowed, InvalidCheckpoint, InvalidRequest, NotFound, Unavailable
from armature.modeling.checkpoints.folder import (
    GENERATION,
    MODEL_FILES,
    Checkpoint,
    describe_checkpoint,
    open_checkpoint,
)
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.checkpoints.unsafe_files import refuse_unsafe_files
from armature.modeling.layers import decoder_linears
from armature.modeling.tokenization.chat_templates import probe_chat_template
from armature_worker.context.ports import Output, RecipeContext, RecipeResult
from armature_worker.context.provenance import parents

STEPS = 4


def run(spec: BaseModelImportSpec, context: RecipeContext) -> RecipeResult:
    """Import a base model. Output: ``checkpoint``, its weights bit for bit and the files we read.

    Raises:
        InvalidCheckpoint: The files are unsafe, incomplete or contradict each other.
        ImportNotAllowed: The operator does not allow the source.
    """
    folder = context.workdir / "checkpoint"
    context.progress("fetch", 0, STEPS)
    _copy_model_files(_SOURCES[spec.source.type](spec.source, context), folder)
    context.progress("check", 1, STEPS)
    checkpoint = open_checkpoint(folder)
    _drop_unused_shards(folder, {entry.path for entry in checkpoint.tensors.values()})
    _keep_token_ids_only(checkpoint)
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template:
        probe_chat_template(tokenizer.chat_template, tokenizer.special_tokens_map)
    context.progress("hash", 2, STEPS)
    metadata = describe_checkpoint(checkpoint, tokenizer, spec.license_note)
    context.progress("load", 3, STEPS)
    model = load_model(folder, context.device)
    _check_together(model, tokenizer)
    context.progress("load", STEPS, STEPS)
    context.log(f"{metadata.architecture} with {metadata.parameters} parameters in {metadata.dtype}")
    return RecipeResult([Output("checkpoint", folder, metadata, parents(context))], register_as=spec.name)


def _folder_files(source: FolderSource, context: RecipeContext) -> dict[str, Path]:
    """List the files of an allowed folder; links are followed if they stay below the allowed root."""
    folder = Path(source.path).resolve()
    root = next((root.resolve() for root in context.imports.roots if folder.is_relative_to(root.resolve())), None)
    if root is None:
        raise ImportNotAllowed("the folder is not below an allowed import root", param="spec.source.path")
    if not folder.is_dir():
        raise NotFound("the folder does not exist", param="spec.source.path")
    files = {path.name: path.resolve() for path in sorted(folder.iterdir()) if path.is_file()}
    for name, path in files.items():
        if not path.is_relative_to(root):
            raise InvalidCheckpoint(f"{name} is a link out of the allowed folder", param=name)
    return files


def _uploaded_files(source: FilesSource, context: RecipeContext) -> dict[str, Path]:
    return {name: context.files[f"files/{name}"] for name in source.files}


def _hub_files(source: HubSource, context: RecipeContext) -> dict[str, Path]:
    if not context.imports.hub:
        raise ImportNotAllowed("imports from the hub are not allowed", param="spec.source")
    try:
        folder = snapshot_download(
            source.repo_id,
            revision=source.revision,
            local_dir=context.workdir / "hub",
            allow_patterns=[*sorted(MODEL_FILES), "*.safetensors"],
        )
    except RepositoryNotFoundError as error:
        raise InvalidRequest(f"{source.repo_id} not found or not readable", param="spec.source.repo_id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(f"the download of {source.repo_id} failed: {error}", param="spec.source") from error
    return {path.name: path for path in Path(folder).iterdir() if path.is_file()}


_SOURCES: dict[str, Callable[[Any, RecipeContext], dict[str, Path]]] = {
    "folder": _folder_files,
    "files": _uploaded_files,
    "hub": _hub_files,
}


def _copy_model_files(files: dict[str, Path], folder: Path) -> None:
    """Copy the files; later checks read the copy, which can not change in between."""
    refuse_unsafe_files(files)
    folder.mkdir()
    for name, path in files.items():
        if name in MODEL_FILES or name.endswith(".safetensors"):
            shutil.copyfile(path, folder / name)


def _drop_unused_shards(folder: Path, used: set[Path]) -> None:
    for path in folder.glob("*.safetensors"):
        if path not in used:
            path.unlink()


def _check_together(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Run one forward pass: the logits must be finite, as wide as configured, and cover all token ids."""
    width, largest = model.config.vocab_size, max(tokenizer.get_vocab().values())
    if largest >= width:
        raise InvalidCheckpoint(f"the tokenizer has id {largest}, the model has {width} ids", param="tokenizer.json")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[tokenizer.eos_token_id]], device=model.device)).logits
    if logits.shape[-1] != width or not bool(logits.isfinite().all()):
        raise InvalidCheckpoint(f"the model's output is not {width} finite logits", param="model.safetensors")
    if not decoder_linears(model):
        raise InvalidCheckpoint("the decoder layers have no linear projections", param="config.json")


def _keep_token_ids_only(checkpoint: Checkpoint) -> None:
    """Reduce ``generation_config.json`` to its special ids; sampling settings come with each request."""
    if (path := checkpoint.folder / GENERATION).exists():
        path.write_text(json.dumps(checkpoint.token_ids, indent=2, sort_keys=True))
