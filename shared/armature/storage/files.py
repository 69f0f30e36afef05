"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(
    path: Path, drafts: Path | None = None, *, place: Callable[[str, Path], None] = os.replace
) -> Iterator[BinaryIO]:
    """A file to write to that gets its name when the block ends well, and vanishes when it does not.

    Args:
        path: The final name; its folder is made when missing.
        drafts: Where the unfinished file lies, on the same file system; beside ``path`` by default.
        place: Gives the file its name: ``os.replace``, or ``os.link``, which fails where one is taken.
    """
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=drafts or path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        place(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    _sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably: a file in it survives a power cut only if they do."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
