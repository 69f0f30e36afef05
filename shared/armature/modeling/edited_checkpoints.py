"""Subtract a task vector from a checkpoint on disk, shard by shard: memory is bounded, whatever the model's size."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from torch import uint8

from armature.algorithms.task_vectors import SparseVector, check_fit, check_scale, subtract_block
from armature.algorithms.tensor_sources import Scratch, blocks, map_in_order
from armature.modeling.checkpoints import INDEX, MODEL_FILES, Checkpoint, tied_names
from armature.modeling.safetensors_files import ITEM_BYTES, TORCH_DTYPES, TensorEntry, encode_header, read_part


def write_edited_checkpoint(base: Checkpoint, vector: SparseVector, scale: float, folder: Path) -> None:
    """Write ``theta_b - scale * v`` as a checkpoint sharded like the base; the folder appears whole or not at all.

    Each weight is computed in float32 and cast to its stored dtype once. A tied tensor that the base stores twice is
    written once. Config, tokenizer and everything that the vector does not name keep their bytes.

    Raises:
        ValueError: A negative scale, or a vector that does not fit the base.
    """
    check_scale(scale)
    tied = tied_names(base.config)
    kept = {name: entry for name, entry in base.tensors.items() if tied.get(name) not in base.tensors}
    check_fit({name: entry.shape for name, entry in kept.items()}, vector)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in MODEL_FILES - {INDEX}:
        if (base.folder / name).exists():
            shutil.copyfile(base.folder / name, partial / name)
    shards: dict[Path, dict[str, TensorEntry]] = {}
    for name, entry in sorted(kept.items(), key=lambda item: (item[1].path, item[1].start)):
        shards.setdefault(entry.path, {})[name] = entry
    for path, entries in shards.items():
        _write_shard(entries, vector, scale, partial / path.name)
    if (base.folder / INDEX).exists():
        _write_index(kept, partial / INDEX)
    partial.rename(folder)


def _write_shard(entries: Mapping[str, TensorEntry], vector: SparseVector, scale: float, path: Path) -> None:
    """One file of the edited checkpoint, its tensors in the order of the base's."""

    header = encode_header({name: (entry.dtype, entry.shape) for name, entry in entries.items()})
    path.write_bytes(header)
    scratch = Scratch()
    starts = dict(
        zip(entries, accumulate((e.end - e.start for e in entries.values()), initial=len(header)), strict=False)
    )

    def write(block: tuple[str, int, int]) -> None:
        name, start, stop = block
        entry = entries[name]
        part = read_part(entry, start, stop, scratch.empty("part", stop - start, TORCH_DTYPES[entry.dtype]))
        if scale and name in vector.shapes:
            subtract_block(part, *vector.block(name, start), scale)
        data = part.view(uint8).numpy().data
        if os.pwrite(file.fileno(), data, starts[name] + start * ITEM_BYTES[entry.dtype]) != len(data):
            raise OSError(f"{path.name} could not be written whole")

    with path.open("r+b", buffering=0) as file:
        for _ in map_in_order(write, blocks({name: entry.shape for name, entry in entries.items()})):
            pass


def _write_index(entries: Mapping[str, TensorEntry], path: Path) -> None:
    index = {
        "metadata": {"total_size": sum(entry.end - entry.start for entry in entries.values())},
        "weight_map": {name: entry.path.name for name, entry in sorted(entries.items())},
    }
    path.write_text(json.dumps(index, indent=2))
