"""The ArtifactStore port: objects by key, in a local directory, in memory or on any S3.

One conformance suite (tests/storage) runs on every implementation, including a real S3 server over HTTP.
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
    """The store has no object under the key."""

    code = "object_not_found"


@dataclass(frozen=True)
class ObjectInfo:
    """The metadata of an object."""

    key: str
    size: int
    etag: str
    """Opaque; changes whenever the content does."""
    modified_at: float
    """Seconds since the epoch."""


def check_key(key: str) -> str:
    """Return ``key`` if every store can hold it under exactly this name.

    Raises:
        InvalidRequest: The key is too long, has an empty, ``.`` or ``..`` segment, or a character that S3's XML can not
            carry or that is special to a file system.
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
    """A store of objects by ``/``-separated key. An object becomes visible only when it is complete.

    A key must not be the folder of another one (``a`` and ``a/b``): a file system can not hold both.

    Every method raises :class:`armature.errors.StorageUnavailable` when the backing store can not be reached, after
    its own retries, or :class:`armature.errors.StorageRefused` when it refuses the configured key or bucket,
    :class:`ObjectNotFound` for a missing key, and :class:`armature.errors.InvalidRequest` for a key that
    :func:`check_key` refuses.
    """

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write or replace a small object."""

    def put_file(self, key: str, path: Path) -> None:
        """Write or replace an object from a file, streamed."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if the key is free (conditional put); False if it is taken.

        Atomic if the store supports conditional writes (:attr:`atomic_create`), else best effort.
        """

    @property
    def atomic_create(self) -> bool:
        """Whether at most one of several concurrent :meth:`create` calls succeeds. Probed once on S3."""

    def get_bytes(self, key: str) -> bytes:
        """Read a small object into memory."""

    def get_file(self, key: str, path: Path) -> None:
        """Read an object into a file, streamed; the file appears complete or not at all."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return an object's metadata; None if the key is missing."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``, in key order."""

    def delete(self, key: str) -> None:
        """Delete an object; a missing key is no error."""

    def link(self, key: str, seconds: int, filename: str) -> str | None:
        """Make a URL that downloads this object without credentials; None if the store has no URLs.

        Args:
            key: The object.
            seconds: How long the URL works.
            filename: The name under which a browser saves the object.
        """
