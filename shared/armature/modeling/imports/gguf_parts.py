"""GGUF files in parts: cut by bytes (``.gguf.part00``) or by llama.cpp (``-00001-of-00003.gguf``)."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from armature.errors import InvalidCheckpoint
from armature.modeling.imports.gguf_header import MAGIC, GgufHeader, GgufTensor, read_gguf_header

SUFFIX = ".gguf"
_CHUNK = 1 << 24
_CUT = re.compile(r"(?P<stem>.+)\.gguf\.?(?:part|split)?[-_]?(?P<number>\d+)(?:of\d+)?")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def find_gguf(names: Mapping[str, Path], wanted: str | None = None) -> list[str]:
    """Return the names of one GGUF file's parts in order, a single one mostly; empty where there is none.

    Args:
        names: Paths by file name.
        wanted: The file to take where there are several: its own name, or that of its first part.

    Raises:
        InvalidCheckpoint: There are several files, none is the wanted one, or parts are missing.
    """
    models: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        part = _SPLIT.fullmatch(name) or _CUT.fullmatch(name)
        if part:
            models.setdefault(part["stem"], []).append((int(part["number"]), name))
        elif name.endswith(SUFFIX):
            models.setdefault(name, []).append((0, name))
    found = [[name for _, name in sorted(parts)] for parts in models.values()]
    if wanted is not None:
        found = [parts for parts in found if wanted in parts]
        if not found:
            raise InvalidCheckpoint(f"there is no GGUF file {wanted}", param="spec.gguf_file")
    if len(found) > 1:
        first = ", ".join(sorted(parts[0] for parts in found)[:8])
        raise InvalidCheckpoint(f"there are several GGUF files ({first}); name one", param="spec.gguf_file")
    if found:
        _check_complete(found[0])
    return found[0] if found else []


def join_parts(paths: list[Path], target: Path) -> None:
    """Write the file that the parts make up.

    Raises:
        InvalidCheckpoint: A part is malformed, or the parts do not belong together.
    """
    if len(paths) == 1 or not _SPLIT.fullmatch(paths[0].name):
        with target.open("wb") as joined:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, joined, 1 << 20)
        return
    headers = [read_gguf_header(path) for path in paths]
    with target.open("wb") as joined:
        joined.write(_joint_header(headers))
        for header in headers:
            with header.path.open("rb") as part:
                for tensor in header.tensors:
                    part.seek(header.data_start + tensor.offset)
                    remaining = tensor.size
                    while remaining and (chunk := part.read(min(_CHUNK, remaining))):
                        remaining -= joined.write(chunk)
                    joined.write(bytes(_padding(tensor.size, headers[0].alignment)))


def _check_complete(parts: list[str]) -> None:
    split, cut = _SPLIT.fullmatch(parts[0]), _CUT.fullmatch(parts[0])
    if split is None and cut is None:
        return
    numbers = [int(match["number"]) for name in parts if (match := _SPLIT.fullmatch(name) or _CUT.fullmatch(name))]
    expected = int(split["count"]) if split else len(numbers)
    if numbers != list(range(numbers[0], numbers[0] + expected)) or numbers[0] > 1:
        raise InvalidCheckpoint(f"the parts of {parts[0]} are not complete: found {numbers}", param=parts[0])


def _joint_header(headers: list[GgufHeader]) -> bytes:
    """Encode the first part's values and the tensors of all, at their new offsets."""
    first = headers[0]
    with first.path.open("rb") as file:
        file.seek(first.value_bytes[0])
        values = file.read(first.value_bytes[1] - first.value_bytes[0])
    tensors = [tensor for header in headers for tensor in header.tensors]
    header = MAGIC + struct.pack("<IQQ", first.version, len(tensors), first.value_count) + values
    offset = 0
    for tensor in tensors:
        header += _encode(tensor, offset)
        offset += tensor.size + _padding(tensor.size, first.alignment)
    return header + bytes(_padding(len(header), first.alignment))


def _encode(tensor: GgufTensor, offset: int) -> bytes:
    name = tensor.name.encode()
    rank = len(tensor.dimensions)
    shape = struct.pack(f"<I{rank}Q", rank, *tensor.dimensions)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", tensor.kind, offset)


def _padding(size: int, alignment: int) -> int:
    return -size % alignment
