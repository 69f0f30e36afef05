"""``client.files``."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from armature.client.sync.transport import Pages, Transport
from armature.client.wire import Call
from armature.contracts.files import FileDeleted, FilePurpose, FileView

Content = Path | bytes | tuple[str, bytes | BinaryIO]
"""A path, bytes, or a name and its content."""


class Files:
    """Uploaded files, with the results of their validation."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, file: Content, purpose: FilePurpose = "dataset", *, harmful: bool = False) -> FileView:
        """Upload a file, streaming; equal bytes are stored once.

        ``harmful`` flags the file: only keys with the scopes ``harmful:*`` may use it, in jobs that need harmful data.
        """
        if isinstance(file, Path):
            with file.open("rb") as content:
                return self.create((file.name, content), purpose, harmful=harmful)
        data = {"purpose": purpose} | ({"harmful": "true"} if harmful else {})
        named = ("file", file) if isinstance(file, bytes) else file
        return self._transport.get(FileView, "POST", "files", files={"file": named}, data=data)

    def retrieve(self, file_id: str) -> FileView:
        """Retrieve a file with the results of its validation."""
        return self._transport.get(FileView, "GET", f"files/{file_id}")

    def list(self, *, limit: int = 100) -> Pages[FileView]:
        """List files, newest first."""
        return Pages(self._transport, FileView, "files", limit=limit)

    def content(self, file_id: str) -> bytes:
        """Download a file into memory."""
        return (self._transport.send(Call("GET", f"files/{file_id}/content"))).content

    def delete(self, file_id: str) -> FileDeleted:
        """Delete a file; refused while something refers to it."""
        return self._transport.get(FileDeleted, "DELETE", f"files/{file_id}")
