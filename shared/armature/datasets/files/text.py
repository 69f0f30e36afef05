"""Text of a file of rows: its encoding, its lines, and bounds on what a packed file unpacks to."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from gzip import GzipFile
from typing import Any, BinaryIO, Protocol, TextIO

from armature.datasets.files.magic import UnreadableFile

MAX_ROW_CHARACTERS = 4_000_000
MAX_EXPANSION = 100
"""How many times its own size a packed file may unpack to. Text packs to a tenth; a bomb to a thousandth."""
FREE_EXPANSION = 64 * 2**20
"""Bytes that any packed file may unpack to."""
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


class Unpacked(io.RawIOBase):
    """A stream of unpacked bytes that ends with an error at its bound.

    Args:
        source: Yields the unpacked bytes.
        size: Bytes of the packed file.
        max_bytes: A further bound on the unpacked bytes.
    """

    def __init__(self, source: Readable, size: int, max_bytes: int | None = None) -> None:
        self._source = source
        self._left = min(FREE_EXPANSION + MAX_EXPANSION * size, max_bytes or 2**63)

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """See io.RawIOBase.

        Raises:
            UnreadableFile: The bytes do not unpack, or to too many.
        """
        try:
            data = self._source.read(len(buffer))
        except (OSError, EOFError, zlib.error):
            raise UnreadableFile("unreadable_file", "the file does not unpack: is it complete?") from None
        self._left -= len(data)
        if self._left < 0:
            raise UnreadableFile("too_large_unpacked", "the file unpacks to too many bytes; split it or do not pack it")
        buffer[: len(data)] = data
        return len(data)


def gunzip(file: BinaryIO) -> GzipFile:
    """Open a gzip file for reading."""
    return GzipFile(fileobj=file, mode="rb")


def encoding_of(head: bytes) -> str:
    """Tell the encoding by a byte-order mark, or by the zeros of UTF-16 without one; else UTF-8."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) > 1 and (head[0] == 0) != (head[1] == 0):
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8"


def open_text(file: io.BufferedReader[Any], encoding: str, newline: str | None = None) -> TextIO:
    """Open a binary file as text, in which bytes that are not UTF-8 become lone surrogates.

    So a row is refused for such bytes only where they are in a column that counts.
    """
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return io.TextIOWrapper(file, encoding, errors, newline)


def lines(text: TextIO) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, each cut to one character more than a row may have.

    Raises:
        UnreadableFile: The text ends inside a character.
    """
    number = 0
    while line := _line(text, number):
        number += 1
        yield number, line
        chunk = line
        while len(chunk) > MAX_ROW_CHARACTERS and not chunk.endswith(("\n", "\r")):
            chunk = _line(text, number)


def _line(text: TextIO, number: int) -> str:
    try:
        return text.readline(MAX_ROW_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UnreadableFile("unreadable_file", f"the text is not valid {error.encoding}", number or None) from None
