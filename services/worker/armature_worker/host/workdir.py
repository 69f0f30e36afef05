"""Private directories of running jobs, which may hold weights that must not outlive the job.

A process holds a lock on its directory for as long as it lives; a directory without one belongs to a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def private_directory(root: Path, name: str) -> Iterator[Path]:
    """A new directory that only this user may enter, removed at the end whatever happens."""
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _locked(root):  # nobody sweeps between the birth of the directory and its lock
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(_locked(folder))
        yield folder


def remove_stale_directories(root: Path) -> list[str]:
    """Remove what killed processes left behind; the names of what was removed."""
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        return [folder.name for folder in root.iterdir() if folder.is_dir() and _remove_if_stale(folder)]


@contextlib.contextmanager
def _locked(folder: Path, extra: int = 0) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | extra)
        yield
    finally:
        os.close(descriptor)


def _remove_if_stale(folder: Path) -> bool:
    try:
        with _locked(folder, fcntl.LOCK_NB):
            shutil.rmtree(folder)
    except BlockingIOError:
        return False
    return True
