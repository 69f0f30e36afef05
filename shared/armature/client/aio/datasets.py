"""``client.datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from armature.client.aio.files import AsyncFiles, Content
from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.wire import Call
from armature.contracts.datasets import BadRows, DatasetFormat
from armature.contracts.files import DatasetCheck, DatasetView


class AsyncDatasets:
    """Data sets: registered files of rows, with statistics."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        file_id: str,
        format: DatasetFormat | None = None,
        attribute: str | None = None,
        *,
        on_bad_rows: BadRows = "refuse",
    ) -> DatasetView:
        """Register an uploaded file as a data set."""
        named = {"name": name, "file_id": file_id, "format": format, "attribute": attribute}
        body = {**named, "on_bad_rows": on_bad_rows}
        return await self._transport.get(DatasetView, "POST", "datasets", json=body)

    async def check(self, file: Content) -> DatasetCheck:
        """Show what a file would be as a data set; nothing is stored."""
        if isinstance(file, Path):
            with file.open("rb") as content:
                return await self.check((file.name, content))
        named = ("file", file) if isinstance(file, bytes) else file
        return await self._transport.get(DatasetCheck, "POST", "dataset_checks", files={"file": named})

    async def upload(
        self,
        name: str,
        rows: Iterable[Mapping[str, Any]],
        format: DatasetFormat | None = None,
        attribute: str | None = None,
        *,
        harmful: bool = False,
    ) -> DatasetView:
        """Upload rows as JSON lines and register them as a data set."""
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = await AsyncFiles(self._transport).create((f"{name}.jsonl", lines), harmful=harmful)
        return await self.create(name, file.id, format, attribute)

    async def retrieve(self, dataset_id: str) -> DatasetView:
        """Retrieve a data set with its statistics."""
        return await self._transport.get(DatasetView, "GET", f"datasets/{dataset_id}")

    def list(self, *, limit: int = 100) -> AsyncPages[DatasetView]:
        """List data sets, newest first."""
        return AsyncPages(self._transport, DatasetView, "datasets", limit=limit)

    async def delete(self, dataset_id: str) -> None:
        """Delete a data set; refused while something refers to it."""
        await self._transport.send(Call("DELETE", f"datasets/{dataset_id}"))
