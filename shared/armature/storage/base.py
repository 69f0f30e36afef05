"""The ArtifactStore port: keys to bytes, on a local directory, in memory or on any S3.

One conformance suite (tests/storage) runs on every implementation, a real S3 server over HTTP included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from armature.errors import InvalidRequest, NotFound

_MAX_KEY_BYTES = 1024  # S3's limit
_MAX_SEGMENT_BYTES = 255  # a file system's limit


class ObjectNotFound(NotFound):
    """No object under that key."""

    code = "object_not_found"


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing or a head says of an object."""

    key: str
    size: int
    etag: str
    """Changes whenever the content does; opaque."""
    modified_at: float
    """Seconds since the epoch."""


def check_key(key: str) -> str:
    """The key, if every store can hold it and none can be led astray by it.

    Raises:
        InvalidRequest: It is too long, has an empty, ``.`` or ``..`` segment, or a character that S3's XML can not
            carry or a file system reads as more than a name.
    """
    if len(key.encode(errors="replace")) > _MAX_KEY_BYTES or not all(map(_is_segment, key.split("/"))):
        raise InvalidRequest(f"{key[:100]!r} is not a key of the artifact store", param="key")
    return key


def _is_segment(segment: str) -> bool:
    return (
        segment not in ("", ".", "..")
        and "\\" not in segment
        and segment.isprintable()  # no control characters, no lone surrogates
        and len(segment.encode()) <= _MAX_SEGMENT_BYTES
    )


class ArtifactStore(Protocol):
    """Keys to bytes. Keys are ``/``-separated; a key is visible only once its object is whole.

    A key is never also the folder of another one (``a`` and ``a/b``): a file system could not hold both.

    Every method raises :class:`armature.errors.StorageUnavailable` when the backing store can not be reached, after
    its own retries, :class:`ObjectNotFound` for a missing key, and :class:`armature.errors.InvalidRequest` for one
    that :func:`check_key` refuses.
    """

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write or replace a small object."""

    def put_file(self, key: str, path: Path) -> None:
        """Write or replace an object from a file, streaming."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if the key is free; False if it was taken.

        Atomic where the store supports conditional writes (:attr:`atomic_create`), else best effort.
        """

    @property
    def atomic_create(self) -> bool:
        """Whether two racing :meth:`create` calls can not both win. Probed once on S3."""

    def get_bytes(self, key: str) -> bytes:
        """Read a small object whole."""

    def get_file(self, key: str, path: Path) -> None:
        """Read an object into a file, streaming, complete or not at all (temporary name, then rename)."""

    def head(self, key: str) -> ObjectInfo | None:
        """Facts about an object, or None."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below a prefix, in key order."""

    def delete(self, key: str) -> None:
        """Remove an object; a missing key is no error."""

    def link(self, key: str, seconds: int, filename: str) -> str | None:
        """A URL that gives this one object to whoever has it, for so long; None where the store has no such thing.

        Args:
            filename: What a browser saves it as.
        """
