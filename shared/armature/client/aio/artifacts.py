"""``client.artifacts``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.wire import Call, read
from armature.contracts.artifact_views import ArtifactView, LineageView, LinkView, VerificationView
from armature.contracts.artifacts import ArtifactKind, ArtifactManifest
from armature.errors import ArtifactCorrupt


class AsyncArtifacts:
    """Artifacts: the results of jobs."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def retrieve(self, artifact_id: str) -> ArtifactView:
        """Retrieve an artifact."""
        return await self._transport.get(ArtifactView, "GET", f"artifacts/{artifact_id}")

    def list(
        self, *, kind: ArtifactKind | None = None, job: str | None = None, limit: int = 100
    ) -> AsyncPages[ArtifactView]:
        """List artifacts, newest first."""
        return AsyncPages(self._transport, ArtifactView, "artifacts", kind=kind, job=job, limit=limit)

    async def manifest(self, artifact_id: str) -> ArtifactManifest:
        """Retrieve an artifact's manifest, which has the digest of every file."""
        answer = await self._transport.send(Call("GET", f"artifacts/{artifact_id}/manifest"))
        return ArtifactManifest.model_validate_json(answer.content)

    async def content(self, artifact_id: str, path: str) -> bytes:
        """Download one file of an artifact into memory; for reports, not for weights."""
        return (await self._transport.send(Call("GET", f"artifacts/{artifact_id}/files/{path}"))).content

    async def download(self, artifact_id: str, folder: Path) -> ArtifactManifest:
        """Download all files of an artifact into a folder; each is written whole and verified, or not at all.

        Raises:
            ArtifactCorrupt: A file does not match its digest in the manifest.
        """
        manifest = await self.manifest(artifact_id)
        for file in manifest.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            digest = hashlib.sha256()
            async with self._transport.stream(Call("GET", f"artifacts/{artifact_id}/files/{file.path}")) as answer:
                with part.open("wb") as output:
                    async for piece in answer.aiter_bytes(1 << 20):
                        digest.update(piece)
                        output.write(piece)
            if digest.hexdigest() != file.sha256:
                part.unlink()
                raise ArtifactCorrupt(f"{file.path} does not hash to its digest")
            os.replace(part, target)
        return manifest

    async def link(self, artifact_id: str, path: str, *, seconds: int = 300) -> LinkView:
        """Make a URL that downloads one file without a key."""
        body = {"path": path, "seconds": seconds}
        return await self._transport.get(LinkView, "POST", f"artifacts/{artifact_id}/links", json=body)

    async def verify(self, artifact_id: str) -> VerificationView:
        """Let the platform check the stored files against their digests."""
        return await self._transport.get(VerificationView, "POST", f"artifacts/{artifact_id}/verify")

    async def lineage(self, artifact_id: str) -> LineageView:
        """Retrieve the artifacts that this one was made from and those made from it."""
        return await self._transport.get(LineageView, "GET", f"artifacts/{artifact_id}/lineage")

    async def keep_until(self, artifact_id: str, expires_at: int | None) -> ArtifactView:
        """Set when an artifact may be deleted, in seconds since the epoch; None keeps it."""
        call = Call("PATCH", f"artifacts/{artifact_id}", json={"expires_at": expires_at})
        return read(ArtifactView, await self._transport.send(call))

    async def delete(self, artifact_id: str) -> None:
        """Delete an artifact; refused while something refers to it."""
        await self._transport.send(Call("DELETE", f"artifacts/{artifact_id}"))
