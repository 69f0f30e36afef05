"""Untrusted safetensors files: a bounded, strict read of the header before any tensor is touched.

The library refuses holes, overlaps and truncation, but accepts duplicate keys, NaN, names such as ``../../etc``, and
spends 19 s and 1.2 GB on a header of 700 000 tensors. This reader runs first and refuses all of those.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from armature.algorithms.tensor_sources import Scratch
from armature.errors import InvalidSafetensors

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
ITEM_BYTES = {
    **{"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
FLOATS = frozenset({"F32", "F16", "BF16"})
ANY_DTYPE = frozenset(ITEM_BYTES)
"""What a folder that is still to be prepared may hold: masks, and quantised weights with their scales."""
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,255}")
_CHUNK = 1 << 24


@dataclass(frozen=True)
class TensorEntry:
    """The location of a tensor: its file and byte range, dtype and shape."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def read_header(path: Path, dtypes: Iterable[str] = FLOATS) -> dict[str, TensorEntry]:
    """Read the tensors' locations from a file's header, checked against the file's size to the byte.

    Raises:
        InvalidSafetensors: The file violates the format or a bound; ``param`` names the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if length < 2 or length > size - 8:
            raise _invalid(path, "is not a safetensors file, or is truncated")
        if length > MAX_HEADER_BYTES:
            raise _invalid(path, f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
        raw = file.read(length)
    header = _parse_json(path, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(path, "has a __metadata__ that does not map names to text")
    if not header:
        raise _invalid(path, "has no tensors")
    if len(header) > MAX_TENSORS:
        raise _invalid(path, f"lists {len(header)} tensors; at most {MAX_TENSORS} are allowed")
    allowed = frozenset(dtypes)
    entries = {name: _entry(path, name, value, 8 + length, allowed) for name, value in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("duplicate key")
        return value

    try:
        header = json.loads(raw, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"has a header that is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _invalid(path, "has a header that is not an object")
    return header


def _entry(path: Path, name: str, value: Any, data: int, dtypes: frozenset[str]) -> TensorEntry:
    if not _TENSOR_NAME.fullmatch(name):
        raise _invalid(path, f"has a tensor with an invalid name ({name[:64]!r})")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(path, f"describes tensor {name} incompletely")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise _invalid(path, f"has tensor {name} as {str(dtype)[:32]}; accepted are {', '.join(sorted(dtypes))}")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise _invalid(path, f"has an impossible shape or range for tensor {name}")
    entry = TensorEntry(path, dtype, tuple(shape), data + offsets[0], data + offsets[1])
    if entry.elements * ITEM_BYTES[dtype] != entry.end - entry.start:
        raise _invalid(path, f"gives tensor {name} a byte range that does not fit its shape")
    return entry


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, entries: dict[str, TensorEntry], start: int, size: int) -> None:
    """Check that the tensors fill the rest of the file exactly: no hole, overlap or trailing bytes."""
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != start:
            raise _invalid(path, "has tensors that overlap or leave a hole")
        start = entry.end
    if start != size:
        raise _invalid(path, "has a length other than its header implies")


def read_part(entry: TensorEntry, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
    """Read the flat elements ``start`` to ``stop`` of a tensor, without mapping the file.

    Mapped pages would count as this process's memory.

    Args:
        entry: The tensor's location.
        start: The first element.
        stop: The element after the last.
        into: A contiguous tensor of that dtype and size to read into; a new one by default.

    Raises:
        InvalidSafetensors: The file became shorter since its header was read.
    """
    part = torch.empty(stop - start, dtype=TORCH_DTYPES[entry.dtype]) if into is None else into
    size = ITEM_BYTES[entry.dtype]
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start + start * size)
        if part.numel() and file.readinto(part.view(torch.uint8).numpy().data) != part.numel() * size:
            raise _invalid(entry.path, "is truncated")
    return part


class StoredTensors:
    """The tensors of checked files as a source read in blocks (:mod:`armature.algorithms.tensor_sources`)."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self._entries, self._scratch = entries, Scratch()
        self.shapes = {name: entries[name].shape for name in sorted(entries)}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read flat elements of a tensor, in the stored dtype."""
        entry = self._entries[name]
        return read_part(entry, start, stop, self._scratch.empty("part", stop - start, TORCH_DTYPES[entry.dtype]))


def encode_header(layout: Mapping[str, tuple[str, Sequence[int]]], reserved: int = 0) -> bytes:
    """Encode the header of a file with tensors in the order of ``layout`` (dtype and shape by name).

    It is padded with spaces to a multiple of 8, and to at least ``reserved`` bytes: a writer that knows the shapes only
    at its end reserves space for the largest possible header.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw = raw.ljust(max(reserved - 8, -(-len(raw) // 8) * 8))
    return struct.pack("<Q", len(raw)) + raw


def copy_tensors(entries: Mapping[str, TensorEntry], path: Path) -> None:
    """Write a file of these tensors, streamed, under the names and in the order of the mapping."""
    with path.open("wb") as target:
        target.write(encode_header({name: (entry.dtype, entry.shape) for name, entry in entries.items()}))
        for entry in entries.values():
            with entry.path.open("rb") as source:
                source.seek(entry.start)
                remaining = entry.end - entry.start
                while remaining and (chunk := source.read(min(_CHUNK, remaining))):
                    remaining -= target.write(chunk)


def tensor_sha256(entry: TensorEntry) -> str:
    """Compute the SHA-256 of a tensor's bytes, streamed."""
    hashed = hashlib.sha256()
    with entry.path.open("rb") as file:
        file.seek(entry.start)
        remaining = entry.end - entry.start
        while remaining and (chunk := file.read(min(_CHUNK, remaining))):
            hashed.update(chunk)
            remaining -= len(chunk)
    return hashed.hexdigest()


def check_finite(entries: dict[str, TensorEntry]) -> None:
    """Refuse NaN and infinities, reading the tensors one by one and in slices.

    Raises:
        InvalidSafetensors: A tensor is not finite; code ``non_finite_weights``, and the message names the tensor.
    """
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.path, []).append(name)
    for path, names in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name in names:
                if not all(bool(part.isfinite().all()) for part in _slices(file.get_tensor(name))):
                    raise InvalidSafetensors(
                        f"tensor {name} holds NaN or infinite values", param=path.name, code="non_finite_weights"
                    )


def _slices(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor.flatten(), _CHUNK)


def _invalid(path: Path, reason: str) -> InvalidSafetensors:
    return InvalidSafetensors(f"{path.name} {reason}", param=path.name)
