"""An artifact store in memory, for tests and for programs without persistence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from armature.storage.base import ObjectInfo, ObjectNotFound, check_key
from armature.storage.files import replacing


@dataclass(frozen=True)
class _Stored:
    data: bytes
    modified_at: float

    def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.data), sha256(self.data).hexdigest(), self.modified_at)


class MemoryArtifactStore:
    """:class:`armature.storage.base.ArtifactStore` in this process's memory."""

    atomic_create = True

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._lock = threading.Lock()

    def put_bytes(self, key: str, data: bytes) -> None:
        """See the port."""
        check_key(key)
        with self._lock:
            self._stored[key] = _Stored(bytes(data), time.time())

    def put_file(self, key: str, path: Path) -> None:
        """See the port."""
        self.put_bytes(key, path.read_bytes())

    def create(self, key: str, data: bytes) -> bool:
        """See the port."""
        stored = _Stored(bytes(data), time.time())
        check_key(key)
        with self._lock:
            return self._stored.setdefault(key, stored) is stored

    def get_bytes(self, key: str) -> bytes:
        """See the port."""
        check_key(key)
        with self._lock:
            if key not in self._stored:
                raise ObjectNotFound(f"no object {key}")
            return self._stored[key].data

    def get_file(self, key: str, path: Path) -> None:
        """See the port."""
        data = self.get_bytes(key)
        with replacing(path) as file:
            file.write(data)

    def head(self, key: str) -> ObjectInfo | None:
        """See the port."""
        check_key(key)
        with self._lock:
            stored = self._stored.get(key)
        return stored.info(key) if stored else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See the port."""
        with self._lock:
            found = sorted((key, stored) for key, stored in self._stored.items() if key.startswith(prefix))
        return (stored.info(key) for key, stored in found)

    def delete(self, key: str) -> None:
        """See the port."""
        check_key(key)
        with self._lock:
            self._stored.pop(key, None)

    def link(self, key: str, seconds: int, filename: str) -> None:
        """See the port. Memory has no URLs."""
        check_key(key)
