"""Sparse task vectors on disk: ``task_vector.safetensors`` and its description ``task_vector.json``.

docs/task_vector_format.md describes the layout. Reading and writing go block by block, in bounded memory.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from armature.algorithms.task_vectors import SparseVector
from armature.algorithms.temp_file_tensors import write_at
from armature.algorithms.tensor_sources import BLOCK, Shape, blocks, map_in_order, squares
from armature.contracts.base import Contract, Sha256, canonical_json
from armature.errors import InvalidSafetensors
from armature.modeling.checkpoints.safetensors import TensorEntry, encode_header, read_header, read_part

TENSORS, DESCRIPTION = "task_vector.safetensors", "task_vector.json"
_VALUES, _COUNTS, _GAPS = ".values", ".counts", ".gaps"
_DTYPES = {_VALUES: "F32", _COUNTS: "I32", _GAPS: "U8"}
_SKIP = 255


class VectorOrigin(Contract):
    """The origin of a vector: its base, data sets and selection, as recorded in its files."""

    base_model_digest: Sha256
    data: dict[str, Sha256] = Field(default={}, description="SHA-256 of the data sets by role")
    rule: str
    density: float = Field(gt=0, le=1)


class _Description(Contract):
    schema_version: Literal[2] = 2
    origin: VectorOrigin
    shapes: dict[str, list[Annotated[int, Field(ge=0)]]] = Field(min_length=1)
    kept: int = Field(ge=0)
    norm: float = Field(ge=0)
    dense_norm: float = Field(ge=0)


def encode_gaps(positions: Tensor) -> Tensor:
    """Encode sorted positions as bytes: the gap before each; 255 skips 255 positions and keeps none.

    Args:
        positions: int64, ascending, from 0 and below 2^31.
    """
    gaps = np.diff(positions.numpy().astype(np.int32), prepend=np.int32(-1))
    gaps -= 1
    if not len(gaps) or gaps.max() < _SKIP:  # the common case: one byte each
        return torch.from_numpy(gaps.astype(np.uint8))
    places = (gaps // _SKIP + 1).cumsum()
    codes = np.full(places[-1], _SKIP, dtype=np.uint8)
    codes[places - 1] = np.remainder(gaps, _SKIP)
    return torch.from_numpy(codes)


def decode_gaps(codes: Tensor) -> Tensor:
    """Decode :func:`encode_gaps`; any bytes yield ascending int64 positions without repetition."""
    raw = codes.numpy()
    keeps = raw != _SKIP
    if keeps.all():
        positions = np.cumsum(raw, dtype=np.int64)
        positions += np.arange(len(raw))
        return torch.from_numpy(positions)
    return torch.from_numpy(np.cumsum(raw + keeps.astype(np.int64))[keeps] - 1)


class StoredVector(SparseVector):
    """A vector in its checked files, read block by block; thread-safe."""

    def __init__(self, description: _Description, entries: dict[str, TensorEntry]) -> None:
        super().__init__({name: tuple(shape) for name, shape in description.shapes.items()}, description.dense_norm)
        self.origin = description.origin
        self._kept, self._norm = description.kept, description.norm
        self._entries = entries
        self._ends = {name: self._read_ends(name, shape) for name, shape in self.shapes.items()}

    @property
    def kept(self) -> int:
        """The number of entries, from the description, which was checked at opening."""
        return self._kept

    @property
    def norm(self) -> float:
        """The norm of the entries, from the description, which was checked at opening."""
        return self._norm

    def block(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """Read and decode the positions and values of a block."""
        (gaps_start, values_start), (gaps_stop, values_stop) = self._ends[name][start // BLOCK :][:2].tolist()
        codes = read_part(self._entries[name + _GAPS], gaps_start, gaps_stop)
        return decode_gaps(codes), read_part(self._entries[name + _VALUES], values_start, values_stop)

    def _read_ends(self, name: str, shape: Shape) -> Tensor:
        """Return (blocks + 1, 2): the offsets of each block's gap codes and values, and their ends."""
        counts, gaps, values = (self._entries[name + part] for part in (_COUNTS, _GAPS, _VALUES))
        expected = (-(-math.prod(shape) // BLOCK), 2)
        if counts.shape != expected or len(gaps.shape) != 1 or len(values.shape) != 1:
            raise _malformed(name)
        steps = read_part(counts, 0, counts.elements).view(expected).long()
        ends = torch.cat([torch.zeros(1, 2, dtype=torch.int64), steps.cumsum(0)])
        if bool((steps < 0).any()) or ends[-1].tolist() != [gaps.elements, values.elements]:
            raise _malformed(name)
        return ends

    def check(self) -> None:
        """Check every block (in its tensor, canonical, finite), and the description's sums.

        Raises:
            InvalidSafetensors: A block or a sum is wrong.
        """
        parts = list(map_in_order(self._check_block, blocks(self.shapes)))
        kept, norm = sum(kept for _, (kept, _) in parts), math.sqrt(math.fsum(square for _, (_, square) in parts))
        if kept != self._kept or not math.isclose(norm, self._norm, rel_tol=1e-5):
            raise InvalidSafetensors(f"{TENSORS} does not have the entries that {DESCRIPTION} states", param=TENSORS)

    def _check_block(self, block: tuple[str, int, int]) -> tuple[int, float]:
        name, start, stop = block
        gaps_start, gaps_stop = self._ends[name][start // BLOCK :, 0][:2].tolist()
        if gaps_stop - gaps_start > (stop - start) + (stop - start) // _SKIP:
            raise _malformed(name)
        if gaps_stop > gaps_start and read_part(self._entries[name + _GAPS], gaps_stop - 1, gaps_stop) == _SKIP:
            raise _malformed(name)
        positions, values = self.block(name, start)
        if len(positions) != len(values) or (len(positions) and int(positions[-1]) >= stop - start):
            raise _malformed(name)
        if not bool(values.isfinite().all()):
            raise InvalidSafetensors(
                f"tensor {name} holds NaN or infinite values", param=TENSORS, code="non_finite_weights"
            )
        return len(values), squares(values)


def write_task_vector(vector: SparseVector, origin: VectorOrigin, folder: Path) -> StoredVector:
    """Write ``vector`` into the new ``folder`` and open it; the same vector has the same bytes."""
    folder.mkdir()
    sizes = {name: math.prod(shape) for name, shape in vector.shapes.items()}
    reserved = len(encode_header(_layout(sizes, {name: (2 * size, size) for name, size in sizes.items()})))
    counts: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    parts: list[float] = []
    with (folder / TENSORS).open("wb") as file, tempfile.TemporaryFile(dir=folder) as gaps:
        end = reserved
        for name, codes, values in _encoded(vector):
            end = write_at(file.fileno(), values.view(torch.uint8).numpy().data, end)
            gaps.write(codes.numpy().data)
            counts[name].append((len(codes), len(values)))
            parts.append(squares(values))
        totals = {name: (sum(c for c, _ in rows), sum(v for _, v in rows)) for name, rows in counts.items()}
        file.seek(end)
        _finish(file, gaps, counts, encode_header(_layout(sizes, totals), reserved))
    description = _Description(
        origin=origin,
        shapes={name: list(shape) for name, shape in vector.shapes.items()},
        kept=sum(kept for _, kept in totals.values()),
        norm=math.sqrt(math.fsum(parts)),
        dense_norm=vector.dense_norm,
    )
    (folder / DESCRIPTION).write_bytes(canonical_json(description.model_dump(mode="json")))
    return StoredVector(description, read_header(folder / TENSORS, _DTYPES.values()))


def _encoded(vector: SparseVector) -> Iterator[tuple[str, Tensor, Tensor]]:
    def encode(block: tuple[str, int, int]) -> tuple[Tensor, Tensor]:
        positions, values = vector.block(*block[:2])
        return encode_gaps(positions), values

    for (name, *_), (codes, values) in map_in_order(encode, blocks(vector.shapes)):
        yield name, codes, values


def _layout(sizes: dict[str, int], totals: dict[str, tuple[int, int]]) -> dict[str, tuple[str, list[int]]]:
    """Return the layout: all values, then counts, then gap codes; wide items first keep tensors aligned."""
    shapes = {
        _VALUES: {name: [totals[name][1]] for name in sizes},
        _COUNTS: {name: [-(-size // BLOCK), 2] for name, size in sizes.items()},
        _GAPS: {name: [totals[name][0]] for name in sizes},
    }
    return {name + part: (_DTYPES[part], shapes[part][name]) for part in _DTYPES for name in sizes}


def _finish(file: BinaryIO, gaps: BinaryIO, counts: dict[str, list[tuple[int, int]]], header: bytes) -> None:
    for rows in counts.values():
        file.write(torch.tensor(rows, dtype=torch.int32).numpy().data)
    gaps.seek(0)
    shutil.copyfileobj(gaps, file)
    file.seek(0)
    file.write(header)


def read_task_vector(folder: Path) -> StoredVector:
    """Open a vector's files and check them completely; entries are then read on demand.

    Raises:
        InvalidSafetensors: The files are malformed, contradict each other or contain NaN.
    """
    try:
        description = _Description.model_validate(_read_json(folder / DESCRIPTION))
    except ValidationError as error:
        raise InvalidSafetensors(f"{DESCRIPTION} is malformed or has another version", param=DESCRIPTION) from error
    entries = read_header(folder / TENSORS, _DTYPES.values())
    expected = {name + part: dtype for name in description.shapes for part, dtype in _DTYPES.items()}
    if {name: entry.dtype for name, entry in entries.items()} != expected:
        raise InvalidSafetensors(f"{TENSORS} does not have the tensors that {DESCRIPTION} lists", param=TENSORS)
    vector = StoredVector(description, entries)
    vector.check()
    return vector


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidSafetensors(f"{path.name} can not be read", param=path.name) from error


def _malformed(name: str) -> InvalidSafetensors:
    return InvalidSafetensors(f"the entries of {name} are not sorted positions in its tensor", param=TENSORS)
