"""From any folder of a model's files to a plain one, in steps that note what they change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from armature.contracts.weights import WeightsOrigin
from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.configs import CONFIG
from armature.modeling.checkpoints.folder import GENERATION, MODEL_FILES, WEIGHTS
from armature.modeling.checkpoints.unsafe_files import has_unsafe_name, refuse_unsafe_files
from armature.modeling.imports.gguf import convert_gguf
from armature.modeling.imports.gguf_parts import SUFFIX, find_gguf, join_parts
from armature.modeling.imports.json_files import choose_template, drop_remote_code, write_finite_numbers
from armature.modeling.imports.quantised import dequantise
from armature.modeling.imports.stored_tensors import drop_ignored, untie_unequal
from armature.modeling.imports.text_part import keep_text_part

_NAMED = 8


@dataclass
class Prepared:
    """What preparing a folder changed: a note per change, and what dequantised weights were."""

    notes: list[str] = field(default_factory=list)
    origin: WeightsOrigin | None = None


def prepare_folder(
    files: Mapping[str, Path], folder: Path, dtype: torch.dtype, gguf_file: str | None = None
) -> Prepared:
    """Copy a model's files into the new ``folder`` and make it plain; later checks read the copy.

    Args:
        files: Paths by file name.
        folder: The new folder.
        dtype: The dtype of weights that are dequantised.
        gguf_file: The GGUF file to take where there are several.

    Raises:
        InvalidCheckpoint: The files are no model, unsafe, or of a form that can not be made plain.
    """
    folder.mkdir()
    prepared = Prepared()
    stored = any(name.endswith(".safetensors") for name in files)
    if (parts := [] if stored and gguf_file is None else find_gguf(files, gguf_file)) != []:
        prepared.origin = _convert({name: files[name] for name in parts}, folder, dtype)
    else:
        if not stored:
            _refuse_without_weights(files)
        for name, path in files.items():
            if name in MODEL_FILES or name.endswith(".safetensors"):
                shutil.copyfile(path, folder / name)
    if left := sorted(name for name in files if has_unsafe_name(name)):
        prepared.notes.append(f"left behind unread: {_some(left)}")
    prepared.notes.extend(_make_plain(folder))
    prepared.origin = dequantise(folder, dtype) or prepared.origin
    if origin := prepared.origin:
        name = str(dtype).removeprefix("torch.")
        bits = f"{origin.bits_per_weight:g} bits a weight"
        prepared.notes.append(f"weights dequantised from {origin.format} {origin.quantisation}, {bits}, to {name}")
    return prepared


def _refuse_without_weights(files: Mapping[str, Path]) -> NoReturn:
    refuse_unsafe_files(files)
    raise InvalidCheckpoint(
        "there are neither safetensors nor a GGUF file; of a hub repository of GGUF files, gguf_file names one",
        param=WEIGHTS,
    )


def _convert(parts: Mapping[str, Path], folder: Path, dtype: torch.dtype) -> WeightsOrigin:
    """Join the parts, in their order, under the names that they came with.

    Errors name the file as it was sent.
    """
    source = folder.with_name(f"{folder.name}.gguf")
    named = source / "parts"
    named.mkdir(parents=True)
    for name, path in parts.items():
        (named / name).symlink_to(path.resolve())
    first = next(iter(parts))
    whole = source / (first if first.endswith(SUFFIX) else first[: first.rindex(SUFFIX)] + SUFFIX)
    join_parts([named / name for name in parts], whole)
    origin = convert_gguf(whole, folder, dtype)
    shutil.rmtree(source)
    return origin


def _make_plain(folder: Path) -> Iterator[str]:
    """Run the steps on a folder of safetensors; yield a note for each that changed something."""
    if rewritten := [name for name in (CONFIG, GENERATION) if write_finite_numbers(folder / name)]:
        yield f"infinite numbers of {_some(rewritten)} written as transformers writes them"
    if wrapper := keep_text_part(folder):
        yield f"the text part of {wrapper} was kept; its other parts were left behind"
    if changed := drop_remote_code(folder):
        yield f"keys for remote code dropped from {_some(changed)}: transformers has the architecture, and none runs"
    if others := choose_template(folder):
        yield f"the chat template called default was kept; left behind: {others}"
    if ignored := drop_ignored(folder):
        yield f"tensors that the architecture ignores were dropped: {_some(ignored)}"
    if unequal := untie_unequal(folder):
        yield f"tie_word_embeddings set to false: the stored {_some(unequal)} differs from the embeddings"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
