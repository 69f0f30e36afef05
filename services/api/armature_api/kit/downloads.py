"""Bytes from the store as an answer: by way of a local file, so that they are verified before the first one leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import Depends
from fastapi.responses import FileResponse
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from armature.storage.artifacts import blob_key, fetch_object
from armature.storage.base import ArtifactStore


def _download_folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="armature-download-") as folder:
        yield Path(folder)


# "request": the folder lives until the answer was sent
DownloadFolder = Annotated[Path, Depends(_download_folder, scope="request")]


class _Download(FileResponse):
    """A file; a Range that can not be served is ignored, as RFC 9110 allows, and the whole file is sent.

    Starlette would answer it with a plain 400 or an empty 416: the one place where an error had no envelope.
    """

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except (MalformedRangeHeader, RangeNotSatisfiable):
            return []  # no range: all of it


def send_blob(store: ArtifactStore, tenant_id: str, sha256: str, filename: str, folder: Path) -> FileResponse:
    """A tenant's blob as a download. The ETag is its sha256; a Range that can not be served is ignored.

    Raises:
        ArtifactCorrupt: The stored bytes are damaged.
    """
    local = folder / "file"
    fetch_object(store, blob_key(tenant_id, sha256), local, sha256)
    headers = {"ETag": f'"{sha256}"', "X-Content-Type-Options": "nosniff"}
    return _Download(local, media_type="application/octet-stream", filename=filename, headers=headers)
