"""``base_model.import``: copy a model's files, refuse unsafe ones, hash them, load the model once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
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
from armature.modeling.imports.gguf_parts import SUFFIX
from armature.modeling.imports.json_files import drop_tokens
from armature.modeling.imports.preparation import prepare_folder
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
    files = _SOURCES[spec.source.type](spec, context)
    context.progress("check", 1, STEPS)
    prepared = prepare_folder(files, folder, getattr(torch, spec.dtype), spec.gguf_file)
    checkpoint = open_checkpoint(folder)
    _drop_unused_shards(folder, {entry.path for entry in checkpoint.tensors.values()})
    _keep_token_ids_only(checkpoint)
    tokenizer = load_tokenizer(folder)
    if dropped := drop_tokens(folder, tokenizer, checkpoint.config.vocab_size):
        prepared.notes.append(f"tokens past the model's vocabulary dropped: {', '.join(dropped[:8])}")
        tokenizer = load_tokenizer(folder)
    for note in prepared.notes:
        context.log(note)
    if tokenizer.chat_template:
        probe_chat_template(tokenizer.chat_template, tokenizer.special_tokens_map)
    context.progress("hash", 2, STEPS)
    metadata = describe_checkpoint(checkpoint, tokenizer, spec.license_note)
    metadata = metadata.model_copy(update={"origin": prepared.origin})
    context.progress("load", 3, STEPS)
    model = load_model(folder, context.device)
    _check_together(model, tokenizer)
    context.progress("load", STEPS, STEPS)
    context.log(f"{metadata.architecture} with {metadata.parameters} parameters in {metadata.dtype}")
    return RecipeResult([Output("checkpoint", folder, metadata, parents(context))], register_as=spec.name)


def _folder_files(spec: BaseModelImportSpec, context: RecipeContext) -> dict[str, Path]:
    """List the files of an allowed folder, or one GGUF file; links are followed below the allowed root."""
    assert isinstance(spec.source, FolderSource)
    folder = Path(spec.source.path).resolve()
    root = next((root.resolve() for root in context.imports.roots if folder.is_relative_to(root.resolve())), None)
    if root is None:
        raise ImportNotAllowed("the folder is not below an allowed import root", param="spec.source.path")
    if folder.is_file() and folder.suffix == SUFFIX:
        return {folder.name: folder}
    if not folder.is_dir():
        raise NotFound("the folder does not exist", param="spec.source.path")
    files = {path.name: path.resolve() for path in sorted(folder.iterdir()) if path.is_file()}
    for name, path in files.items():
        if not path.is_relative_to(root):
            raise InvalidCheckpoint(f"{name} is a link out of the allowed folder", param=name)
    return files


def _uploaded_files(spec: BaseModelImportSpec, context: RecipeContext) -> dict[str, Path]:
    assert isinstance(spec.source, FilesSource)
    return {name: context.files[f"files/{name}"] for name in spec.source.files}


def _hub_files(spec: BaseModelImportSpec, context: RecipeContext) -> dict[str, Path]:
    source = spec.source
    assert isinstance(source, HubSource)
    if not context.imports.hub:
        raise ImportNotAllowed("imports from the hub are not allowed", param="spec.source")
    try:
        folder = snapshot_download(
            source.repo_id,
            revision=source.revision,
            local_dir=context.workdir / "hub",
            allow_patterns=[*sorted(MODEL_FILES), "*.safetensors", *([spec.gguf_file] if spec.gguf_file else [])],
        )
    except RevisionNotFoundError as error:
        message = f"{source.repo_id} has no revision {source.revision}"
        raise InvalidRequest(message, param="spec.source.revision") from error
    except RepositoryNotFoundError as error:
        raise InvalidRequest(f"{source.repo_id} not found or not readable", param="spec.source.repo_id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(f"the download of {source.repo_id} failed: {error}", param="spec.source") from error
    return {path.name: path for path in Path(folder).iterdir() if path.is_file()}


_SOURCES: dict[str, Callable[[BaseModelImportSpec, RecipeContext], dict[str, Path]]] = {
    "folder": _folder_files,
    "files": _uploaded_files,
    "hub": _hub_files,
}


def _drop_unused_shards(folder: Path, used: set[Path]) -> None:
    for path in folder.glob("*.safetensors"):
        if path not in used:
            path.unlink()


def _check_together(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Run one forward pass: the logits must be finite, as wide as configured, and cover the token ids.

    Only a special token that the tokenizer's class adds may have an id past them: text never encodes to it.
    """
    width, added = model.config.vocab_size, tokenizer.added_tokens_decoder
    past = [id for id in tokenizer.get_vocab().values() if id >= width and not (id in added and added[id].special)]
    if past or tokenizer.eos_token_id >= width:
        largest = max(past, default=tokenizer.eos_token_id)
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
