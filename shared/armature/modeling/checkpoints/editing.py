"""Edit a checkpoint on disk, shard by shard: memory is bounded, whatever the model's size.

The edits are subtracting a task vector and adding the low-rank delta of a merged adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from armature.algorithms.low_rank_deltas import LowRankDelta
from armature.algorithms.task_vectors import SparseVector, check_fit, check_scale, subtract_block
from armature.algorithms.temp_file_tensors import write_at
from armature.algorithms.tensor_sources import Scratch, Shape, blocks, map_in_order
from armature.modeling.checkpoints.configs import tied_names
from armature.modeling.checkpoints.folder import (
    INDEX,
    MODEL_FILES,
    Checkpoint,
    open_checkpoint,
    write_checkpoint,
    write_index,
)
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.checkpoints.safetensors import ITEM_BYTES, TORCH_DTYPES, TensorEntry, encode_header, read_part


@dataclass(frozen=True)
class Edits:
    """The edits of a checkpoint: ``theta_b - scale * v + delta``."""

    vector: SparseVector | None = None
    scale: float = 0.0
    delta: LowRankDelta | None = None

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the edited tensors by name."""
        parts = (part.shapes for part in (self.vector, self.delta) if part is not None)
        return {name: shape for shapes in parts for name, shape in shapes.items()}

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Refuse edits that would add harm, or do not fit a model of these ``shapes``.

        Raises:
            ValueError: The scale is negative, or a tensor is missing or has another shape.
        """
        check_scale(self.scale)
        if self.vector is not None:
            check_fit(shapes, self.vector)
        for name, shape in self.shapes.items():
            if shapes.get(name) != shape:
                raise ValueError(f"the adapter's {name} of shape {shape} has no counterpart in the model")

    def apply(self, entries: torch.Tensor, name: str, start: int) -> None:
        """Edit a block of a tensor's flat entries in place, in float32 with one rounding."""
        subtracts = self.vector is not None and self.scale > 0 and name in self.vector.shapes
        adds = self.delta is not None and name in self.delta.shapes
        edited = entries.float() if subtracts and adds else entries
        if self.vector is not None and subtracts:
            subtract_block(edited, *self.vector.block(name, start), self.scale)
        if self.delta is not None and adds:
            self.delta.add_block(edited, name, start)
        if edited is not entries:
            entries.copy_(edited)


def write_safe_checkpoint(base: Path, edits: Edits, folder: Path) -> None:
    """Write the edited checkpoint, streamed, or through a loaded model if its tensors are renamed.

    Some families rename or merge tensors on loading, so the edits' names are not those in the files.

    Raises:
        ValueError: The edits do not fit the base, or the scale is negative.
    """
    checkpoint = open_checkpoint(base)
    if edits.shapes.keys() <= checkpoint.tensors.keys():
        return write_edited_checkpoint(checkpoint, edits, folder)
    model = load_model(base)
    parameters = dict(model.named_parameters())
    edits.check({name: tuple(parameter.shape) for name, parameter in parameters.items()})
    with torch.no_grad():
        for name, start, stop in blocks(edits.shapes):
            edits.apply(parameters[name].view(-1)[start:stop], name, start)
    return write_checkpoint(model, load_tokenizer(base), folder)


def write_edited_checkpoint(base: Checkpoint, edits: Edits, folder: Path) -> None:
    """Write the edited tensors, sharded like the base; the folder appears complete or not at all.

    A tied tensor that the base stores twice is written once. Config, tokenizer and unedited tensors keep their bytes.

    Raises:
        ValueError: The scale is negative, or the edits do not fit the base.
    """
    tied = tied_names(base.config)
    kept = {name: entry for name, entry in base.tensors.items() if tied.get(name) not in base.tensors}
    edits.check({name: entry.shape for name, entry in kept.items()})
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
        _write_shard(entries, edits, partial / path.name)
    if (base.folder / INDEX).exists():
        write_index(kept, partial / INDEX)
    partial.rename(folder)


def _write_shard(entries: Mapping[str, TensorEntry], edits: Edits, path: Path) -> None:
    """Write one file of the edited checkpoint, with its tensors in the base's order."""
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
        edits.apply(part, name, start)
        write_at(file.fileno(), part.view(torch.uint8).numpy().data, starts[name] + start * ITEM_BYTES[entry.dtype])

    with path.open("r+b", buffering=0) as file:
        for _ in map_in_order(write, blocks({name: entry.shape for name, entry in entries.items()})):
            pass
