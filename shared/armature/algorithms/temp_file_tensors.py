"""Tensors in unnamed temporary files, which vanish with the process even if it is killed.

Paper: none. A difference may be larger than memory, and a selection reads its candidates several times. No path leads
to such a file, which is why a harm-tuned difference may be written to it.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from armature.algorithms.tensor_sources import Scratch, TensorSource, blocks, map_in_order

_ITEM = 4
"""Bytes of a float32."""
_PIECE = 1 << 16
"""Bytes a write. Given megabytes at once, Linux looks for large folios to keep them in, at three times the cost."""


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Write all of ``data`` at an offset of an open file; where it ends. Any thread may write.

    Raises:
        OSError: It could not be written whole.
    """
    data = data.cast("B")
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        if os.pwrite(descriptor, piece, offset + start) != len(piece):
            raise OSError("a file could not be written whole")
    return offset + len(data)


class _UnnamedFile:
    """Appended to by one thread, then read by any."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives as long as what reads from it
        self._end = 0
        weakref.finalize(self, self._file.close)

    def write(self, part: Tensor) -> int:
        """Append; where the part begins."""
        start = self._end
        if part.numel():
            self._end = write_at(self._file.fileno(), part.cpu().numpy().data, start)
        return start

    def read(self, into: Tensor, start: int) -> None:
        """Fill a tensor."""
        data = into.numpy().data
        if data.nbytes and os.preadv(self._file.fileno(), [data], start) != data.nbytes:
            raise OSError("a temporary file is shorter than what was written to it")


class TempFileCandidates:
    """Candidates by block: 8 bytes an entry.

    Args:
        folder: Where the file lies; the system's temporary directory by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = _UnnamedFile(folder)
        self._places: dict[tuple[str, int], tuple[int, int]] = {}

    def append(self, name: str, start: int, positions: Tensor, values: Tensor) -> None:
        """Keep a block's candidates; a block that is kept again replaces itself."""
        self._places[name, start] = self._file.write(positions.to(torch.int32)), len(values)
        self._file.write(values)

    def read(self, name: str, start: int) -> tuple[Tensor, Tensor]:
        """A block's positions (int32) and values; any thread may read."""
        offset, count = self._places[name, start]
        raw = torch.empty(2, count, dtype=torch.int32)
        self._file.read(raw, offset)
        return raw[0], raw[1].view(torch.float32)


class TempFileTensors:
    """A copy of a source in float32, read once: it needs neither the source nor memory any more.

    Args:
        source: What to copy.
        folder: Where the file lies; the system's temporary directory by default.
    """

    def __init__(self, source: TensorSource, folder: Path | None = None) -> None:
        self.shapes, self._scratch = source.shapes, Scratch()
        self._file, self._starts, end = _UnnamedFile(folder), dict[str, int](), 0
        for name, shape in source.shapes.items():
            self._starts[name], end = end, end + _ITEM * math.prod(shape)
        for _, part in map_in_order(
            lambda block: source.read(*block).to("cpu", torch.float32, copy=True), blocks(source.shapes)
        ):
            self._file.write(part)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read from the file."""
        part = self._scratch.empty("part", stop - start, torch.float32)
        self._file.read(part, self._starts[name] + _ITEM * start)
        return part
