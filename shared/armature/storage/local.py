"""An artifact store in a local directory, for one machine.

Objects are files below ``objects/``, by key. A write goes to a file in ``incoming/`` first and is renamed once it is
synced, so a reader sees the old object or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from armature.errors import StorageUnavailable
from armature.storage.base import ObjectInfo, ObjectNotFound, check_key
from armature.storage.files import make_folder, replacing

_ABANDONED_SECONDS = 24 * 3600
"""Age above which an unfinished write belongs to a process that died."""

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""Errors of a file system that mean a missing key."""


class LocalArtifactStore:
    """:class:`armature.storage.base.ArtifactStore` in a directory, which is made on first use."""

    atomic_create = True

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def put_bytes(self, key: str, data: bytes) -> None:
        """See the port."""
        path = self._path(key)
        with _unavailable(), self._writing(path) as file:
            file.write(data)

    def put_file(self, key: str, path: Path) -> None:
        """See the port."""
        target = self._path(key)
        with path.open("rb") as source, _unavailable(), self._writing(target) as file:
            shutil.copyfileobj(source, file)

    def create(self, key: str, data: bytes) -> bool:
        """See the port."""
        path = self._path(key)
        try:
            with self._writing(path, place=os.link) as file:
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise _as_unavailable(error) from error
        return True

    def get_bytes(self, key: str) -> bytes:
        """See the port."""
        with self._open(key) as file:
            return file.read()

    def get_file(self, key: str, path: Path) -> None:
        """See the port."""
        with self._open(key) as source, replacing(path) as target:
            shutil.copyfileobj(source, target)

    def head(self, key: str) -> ObjectInfo | None:
        """See the port."""
        path = self._path(key)
        with _unavailable():
            try:
                stat = path.stat()
            except _ABSENT:
                return None
        if path.is_dir():
            return None
        return ObjectInfo(key, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}", stat.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See the port."""
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self._objects
        keys = (
            (Path(parent) / name).relative_to(self._objects).as_posix()
            for parent, _, names in os.walk(start)
            for name in names
        )
        # Sorted by whole key, like S3's listing: a walk through the tree would yield "a/b" before "a-b".
        for key in sorted(key for key in keys if key.startswith(prefix)):
            if info := self.head(key):
                yield info

    def delete(self, key: str) -> None:
        """See the port. Folders stay: removing an empty one could race with a writer."""
        path = self._path(key)
        with _unavailable(), contextlib.suppress(*_ABSENT):
            path.unlink()

    def link(self, key: str, seconds: int, filename: str) -> None:
        """See the port. A directory has no URLs."""
        check_key(key)

    @cached_property
    def _objects(self) -> Path:
        with _unavailable():
            make_folder(self._root / "objects")
            make_folder(self._incoming)
        self._remove_abandoned()
        return self._root / "objects"

    @property
    def _incoming(self) -> Path:
        return self._root / "incoming"

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with _unavailable():
            try:
                return path.open("rb")
            except _ABSENT as error:
                raise ObjectNotFound(f"no object {key}") from error

    def _path(self, key: str) -> Path:
        return self._objects / check_key(key)

    @contextlib.contextmanager
    def _writing(self, path: Path, place: Callable[[str, Path], None] = os.replace) -> Iterator[BinaryIO]:
        with replacing(path, self._incoming, place=place) as file:
            yield file
            file.flush()
            # The mtime is part of the etag. The kernel's ticks are milliseconds: two writes could have equal etags.
            now = time.time_ns()
            os.utime(file.fileno(), ns=(now, now))

    def _remove_abandoned(self) -> None:
        for path in self._incoming.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()


def _as_unavailable(error: OSError) -> StorageUnavailable:
    return StorageUnavailable(f"the store's directory can not be used: {error.strerror or error}")


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _as_unavailable(error) from error
