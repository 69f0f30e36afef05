"""Durable files that appear complete or not at all."""

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
    """Yield a file that is moved to ``path`` if the block succeeds, and deleted otherwise.

    Args:
        path: The final name; its folder is made if missing.
        drafts: The folder of the unfinished file, on the same file system; by default that of ``path``.
        place: Moves the file: ``os.replace``, or ``os.link``, which fails if ``path`` exists.
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
    """Make a folder and its parents, durably: a file in it survives a power cut only if they do."""
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
