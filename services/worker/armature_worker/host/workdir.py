"""Private directories of running jobs; they may hold weights that must not outlive the job.

A process locks its directory for as long as it lives, so a directory without a lock belongs to a dead process.
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
    """Create a directory below ``root`` that only this user may enter; remove it when the block ends."""
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _locked(root):  # else a sweep could remove the new directory before it is locked
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(_locked(folder))
        yield folder


def remove_stale_directories(root: Path) -> list[str]:
    """Remove the directories of killed processes; return their names."""
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
