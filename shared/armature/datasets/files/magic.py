"""Files that are not read: each kind with its first bytes, and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass

_UNPACK = "unpack it and upload the file of rows inside"
_EXPORT = "export the rows as JSON lines, CSV or parquet"
_MODEL = "that is a model's file: upload it with the purpose `model`"


class UnreadableFile(Exception):
    """A file whose rows, or whose further rows, can not be read.

    Args:
        code: The code of the problem.
        message: What is wrong, and the remedy.
        number: The line or row at which reading ended, if any was read.
    """

    def __init__(self, code: str, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.number = code, message, number


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, the remedy, and the first bytes, from ``offset`` on, that tell it."""

    name: str
    remedy: str
    first: bytes
    offset: int = 0

    def matches(self, head: bytes) -> bool:
        """Tell whether a file that begins with ``head`` is of this kind."""
        return head[self.offset :].startswith(self.first)


KINDS = (
    Kind("a zstd archive", _UNPACK, b"\x28\xb5\x2f\xfd"),
    Kind("an xz archive", _UNPACK, b"\xfd7zXZ\x00"),
    Kind("a bzip2 archive", _UNPACK, b"BZh"),
    Kind("an lz4 archive", _UNPACK, b"\x04\x22\x4d\x18"),
    Kind("a 7z archive", _UNPACK, b"7z\xbc\xaf\x27\x1c"),
    Kind("a rar archive", _UNPACK, b"Rar!\x1a\x07"),
    Kind("a tar archive", _UNPACK, b"ustar", 257),
    Kind("an encrypted parquet file", "write it without encryption", b"PARE"),
    Kind("an arrow file", "write it as parquet", b"ARROW1"),
    Kind("a stream of arrow records", "write it as parquet", b"\xff\xff\xff\xff"),
    Kind("an ORC file", "write it as parquet", b"ORC"),
    Kind("an avro file", "write it as parquet", b"Obj\x01"),
    Kind("a PDF", _EXPORT, b"%PDF"),
    Kind("an old Excel or Word file", _EXPORT, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    Kind("an SQLite database", _EXPORT, b"SQLite format 3\x00"),
    Kind("an HDF5 file", _EXPORT, b"\x89HDF\r\n\x1a\n"),
    Kind("a numpy array", _EXPORT, b"\x93NUMPY"),
    Kind("an XML file", _EXPORT, b"<?xml"),
    Kind("a web page", "download the file itself", b"<!DOCTYPE"),
    Kind("a web page", "download the file itself", b"<!doctype"),
    Kind("a web page", "download the file itself", b"<html"),
    Kind("a Git LFS pointer", "fetch the file it stands for with `git lfs pull`", b"version https://git-lfs"),
    Kind("a GGUF model", _MODEL, b"GGUF"),
    Kind("a PNG image", _EXPORT, b"\x89PNG\r\n\x1a\n"),
    Kind("a JPEG image", _EXPORT, b"\xff\xd8\xff"),
    *(Kind("a pickle", _EXPORT, bytes((0x80, protocol))) for protocol in range(2, 6)),
)
_ZIP = b"PK\x03\x04"
_OFFICE = ((b"xl/", "an Excel workbook (xlsx)"), (b"word/", "a Word document (docx)"))
_TORCH = b"/data.pkl"


def refuse_unreadable(head: bytes) -> None:
    """Refuse a file that begins with ``head`` if its first bytes tell a kind that holds no rows.

    Raises:
        UnreadableFile: The message names the kind and the remedy.
    """
    kind = _zipped(head) if head.startswith(_ZIP) else next((kind for kind in KINDS if kind.matches(head)), None)
    if kind is None and _is_safetensors(head):
        kind = Kind("a safetensors file", _MODEL, b"")
    if kind is not None:
        raise UnreadableFile("unreadable_file", f"the file is {kind.name}; {kind.remedy}")


def _zipped(head: bytes) -> Kind:
    if _TORCH in head:
        return Kind("a PyTorch checkpoint", _MODEL, _ZIP)
    if b"[Content_Types].xml" in head:
        name = next((name for part, name in _OFFICE if part in head), "an Excel or Word file")
        return Kind(name, _EXPORT, _ZIP)
    return Kind("a zip archive", _UNPACK, _ZIP)


def _is_safetensors(head: bytes) -> bool:
    """Tell whether the head is a length of eight bytes and a JSON object of about that length."""
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000
