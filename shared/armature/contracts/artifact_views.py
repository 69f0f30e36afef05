"""Artifacts as the API shows them: views, links to files, verification and lineage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactKind, ArtifactMetadata, Parent
from armature.contracts.base import Contract, Sha256, UnixSeconds, View


class ArtifactView(View):
    """An artifact as the API shows it."""

    id: str
    object: Literal["artifact"] = "artifact"
    kind: ArtifactKind
    name: str = Field(description="the output's role in the job, such as harm_vector or safe_checkpoint")
    digest: Sha256
    job_id: str | None
    shared: bool
    bytes: int
    created_at: UnixSeconds
    expires_at: UnixSeconds | None = Field(None, description="deleted after this time, unless something refers to it")
    metadata: ArtifactMetadata
    parents: list[Parent]


class ArtifactUpdateRequest(Contract):
    """A change of an artifact's expiry."""

    expires_at: UnixSeconds | None = Field(description="null: never")


class LinkCreateRequest(Contract):
    """A request for a URL that downloads one file without an API key."""

    path: str = Field(max_length=1024, description="a file of the artifact")
    seconds: int = Field(300, ge=1, le=3600, description="how long the URL works")


class LinkView(View):
    """A URL that downloads one file, without an API key, until it expires."""

    object: Literal["artifact.link"] = "artifact.link"
    url: str
    expires_at: UnixSeconds


class FileVerification(View):
    """The result of checking a stored file against the manifest."""

    path: str
    ok: bool
    problem: str | None = None


class VerificationView(View):
    """The result of reading and hashing all files of an artifact."""

    object: Literal["artifact.verification"] = "artifact.verification"
    artifact_id: str
    ok: bool
    files: list[FileVerification]


class LineageNode(View):
    """An artifact, or an input of another kind: a data set or an uploaded file, identified by digest."""

    digest: Sha256
    kind: ArtifactKind | Literal["file", "unknown"]
    id: str | None = Field(description="id of the artifact or file, if the tenant may see it")
    name: str | None = None


class LineageEdge(View):
    """An edge of the lineage: ``child`` was made from ``parent`` in the role ``role``; both by digest."""

    parent: Sha256
    child: Sha256
    role: str


class LineageView(View):
    """All ancestors and all descendants of an artifact, as a graph."""

    object: Literal["artifact.lineage"] = "artifact.lineage"
    root: Sha256
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool = Field(description="the graph is larger than the part shown")
