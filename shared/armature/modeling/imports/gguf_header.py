"""A bounded, strict read of an untrusted GGUF file's header, before a library allocates for it.

GGUF: magic, version, counts of tensors and values, the values (name, type, value), the tensors (name, dimensions, type,
offset), then the tensors' bytes, each aligned. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from armature.errors import InvalidCheckpoint
from armature.modeling.checkpoints.safetensors import MAX_TENSORS

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 128 << 20
"""A vocabulary of 262 144 tokens with its merges takes 16 MB."""
_VERSIONS = (2, 3)
_MAX_VALUES, _MAX_ITEMS, _MAX_TEXT, _MAX_NAME = 4096, 1 << 22, 4 << 20, 256
_DIMENSIONS, _MAX_ALIGNMENT = range(1, 5), 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: dimensions (fastest first), type, and byte range in the data."""

    name: str
    dimensions: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """A file's header, checked: every tensor lies inside the file, and no two overlap."""

    path: Path
    version: int
    value_count: int
    value_bytes: tuple[int, int]
    """Where the values begin and end in the file."""
    values: dict[str, Any]
    """Numbers, booleans and texts by name; arrays are not kept."""
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_start: int

    @property
    def elements(self) -> int:
        """The numbers that all tensors hold together."""
        return sum(prod(tensor.dimensions) for tensor in self.tensors)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file's header.

    Raises:
        InvalidCheckpoint: The file is no GGUF file, or violates the format or a bound; ``param`` names the file.
    """
    if path.stat().st_size < len(MAGIC) + 20:
        raise InvalidCheckpoint(f"{path.name} is not a GGUF file, or is truncated", param=path.name)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(path, data).header()


class _Reader:
    """Reads one header front to back; every length is checked before it is used."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0
        self._end = min(len(data), MAX_HEADER_BYTES)

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise self._invalid("is not a GGUF file")
        version, tensors, values = self._unpack("<IQQ")
        if version not in _VERSIONS:
            raise self._invalid(f"is GGUF version {version}; accepted are 2 and 3, little-endian")
        if not 0 < tensors <= MAX_TENSORS or values > _MAX_VALUES:
            raise self._invalid(
                f"lists {tensors} tensors and {values} values; allowed are {MAX_TENSORS} and {_MAX_VALUES}"
            )
        start = self._at
        kept = dict(self._value() for _ in range(values))
        ends = self._at
        alignment = kept.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._invalid("has a general.alignment that is not a power of two")
        found = tuple(self._tensor(alignment) for _ in range(tensors))
        data_start = -(-self._at // alignment) * alignment
        self._check_layout(found, data_start)
        return GgufHeader(self._path, version, values, (start, ends), kept, found, alignment, data_start)

    def _value(self) -> tuple[str, Any]:
        name = self._text(_MAX_NAME)
        (kind,) = self._unpack("<I")
        if kind == _ARRAY:
            self._skip_array(name)
            return name, None
        return name, self._text(_MAX_TEXT) if kind == _TEXT else self._scalar(kind, name)

    def _scalar(self, kind: int, name: str) -> Any:
        if kind not in _SCALARS:
            raise self._invalid(f"has {name} of the unknown type {kind}")
        return self._unpack("<" + _SCALARS[kind])[0]

    def _skip_array(self, name: str) -> None:
        kind, count = self._unpack("<IQ")
        if count > _MAX_ITEMS or (kind not in _SCALARS and kind != _TEXT):
            raise self._invalid(
                f"has {name} as an array of {count} items of type {kind}; at most {_MAX_ITEMS} are read"
            )
        if kind in _SCALARS:
            self._take(count * struct.calcsize("<" + _SCALARS[kind]))
            return
        for _ in range(count):
            (length,) = self._unpack("<Q")
            self._advance(length)

    def _tensor(self, alignment: int) -> GgufTensor:
        name = self._text(_MAX_NAME)
        (rank,) = self._unpack("<I")
        if rank not in _DIMENSIONS:
            raise self._invalid(f"has tensor {name} of {rank} dimensions")
        dimensions = self._unpack(f"<{rank}Q")
        number, offset = self._unpack("<IQ")
        try:
            kind = GGMLQuantizationType(number)
            block, size = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise self._invalid(f"has tensor {name} of the unknown type {number}") from None
        if not all(dimensions) or dimensions[0] % block or offset % alignment:
            raise self._invalid(f"has an impossible shape or place for tensor {name}")
        return GgufTensor(name, dimensions, kind, offset, prod(dimensions) // block * size)

    def _check_layout(self, tensors: tuple[GgufTensor, ...], data_start: int) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._invalid("has two tensors of one name")
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._invalid("has tensors that overlap")
            end = tensor.offset + tensor.size
        if data_start + end > len(self._data):
            raise self._invalid("is truncated: its tensors end past its own end")

    def _text(self, limit: int) -> str:
        (length,) = self._unpack("<Q")
        if length > limit:
            raise self._invalid(f"has a text of {length} bytes; at most {limit} are allowed")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._invalid("has a text that is not valid UTF-8") from None

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, length: int) -> bytes:
        start = self._at
        self._advance(length)
        return self._data[start : self._at]

    def _advance(self, length: int) -> None:
        if length > self._end - self._at:
            raise self._invalid(f"is truncated, or has a header of more than {MAX_HEADER_BYTES} bytes")
        self._at += length

    def _invalid(self, reason: str) -> InvalidCheckpoint:
        return InvalidCheckpoint(f"{self._path.name} {reason}", param=self._path.name)
