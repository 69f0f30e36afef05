"""Refusal of unsafe files in an untrusted folder: code, pickles and archives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from armature.errors import InvalidCheckpoint

_UNSAFE_SUFFIX = re.compile(r"\.(bin|pt|pth|pt2|pkl|pickle|joblib|ckpt|npz|npy|h5|msgpack|zip|tar|gz)", re.IGNORECASE)
_MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy file",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
}


def has_unsafe_name(name: str) -> bool:
    """Tell whether a file's name is that of code, a pickle or an archive."""
    suffix = Path(name).suffix
    return suffix == ".py" or bool(_UNSAFE_SUFFIX.fullmatch(suffix))


def refuse_unsafe_files(files: Mapping[str, Path]) -> None:
    """Refuse code, pickles and archives, by their first bytes and by suffix.

    Args:
        files: Paths by file name in the model's folder.

    Raises:
        InvalidCheckpoint: A file is unsafe; the message names it.
    """
    for name, path in files.items():
        suffix = Path(name).suffix
        if suffix == ".py":
            raise InvalidCheckpoint(f"{name} is code; models that need their own code are not accepted", param=name)
        with path.open("rb") as file:
            start = file.read(9)
        if suffix == ".safetensors" and start[8:] == b"{":
            continue  # the first eight bytes are a length, and can equal any magic number
        kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
        if kind is None and _UNSAFE_SUFFIX.fullmatch(suffix):
            kind = f"a {suffix} file"
        if kind is not None:
            raise InvalidCheckpoint(f"{name} is {kind}; weights must be safetensors or GGUF", param=name)
