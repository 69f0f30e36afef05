"""Downloads from the store, by way of a local file that is verified before the first byte is sent."""

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


# scope="request": the folder is removed after the response was sent
DownloadFolder = Annotated[Path, Depends(_download_folder, scope="request")]


class _Download(FileResponse):
    """A file response that sends the whole file for a Range that can not be served (RFC 9110).

    Starlette answers such a Range with a plain 400 or an empty 416, which lack the error envelope.
    """

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except (MalformedRangeHeader, RangeNotSatisfiable):
            return []  # no range: the whole file


def send_blob(store: ArtifactStore, tenant_id: str, sha256: str, filename: str, folder: Path) -> FileResponse:
    """Send a tenant's blob as a download, by way of ``folder``. The ETag is its sha256.

    Raises:
        ArtifactCorrupt: The stored bytes are damaged.
    """
    local = folder / "file"
    fetch_object(store, blob_key(tenant_id, sha256), local, sha256)
    headers = {"ETag": f'"{sha256}"', "X-Content-Type-Options": "nosniff"}
    return _Download(local, media_type="application/octet-stream", filename=filename, headers=headers)
