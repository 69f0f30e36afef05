"""Lineage: the graph of what was made from what, followed by digest within what a tenant may see."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import LineageEdge, LineageNode, LineageView
from armature.db.models import Artifact, ArtifactParent, File
from armature_api.rows import visible

MAX_NODES = 1000


def trace(session: Session, tenant_id: str, root: Artifact) -> LineageView:
    """Ancestors and descendants of an artifact, nearest first.

    An ancestor that the tenant may not see, or that was deleted, is a node of kind ``unknown``: its digest stands in
    its children's manifests.
    """
    graph = _Graph(session, tenant_id)
    graph.walk(root.digest, graph.parents)
    graph.walk(root.digest, graph.children)
    return LineageView(
        root=root.digest,
        nodes=[graph.nodes[digest] for digest in graph.nodes],
        edges=[LineageEdge(parent=parent, child=child, role=role) for parent, child, role in sorted(graph.edges)],
        truncated=graph.truncated,
    )


class _Graph:
    """What has been found so far."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session, self._tenant_id = session, tenant_id
        self.nodes: dict[str, LineageNode] = {}
        self.edges: set[tuple[str, str, str]] = set()
        self.truncated = False

    def walk(self, start: str, follow: Callable[[str], Iterator[tuple[str, str, str]]]) -> None:
        """Breadth first from a digest; every digest once, so that work done twice makes no loop."""
        seen, queue = {start}, deque([start])
        while queue:
            digest = queue.popleft()
            if len(self.nodes) >= MAX_NODES:
                self.truncated = True
                return
            self.nodes.setdefault(digest, self._node(digest))
            for parent, child, role in follow(digest):
                self.edges.add((parent, child, role))
                neighbour = parent if child == digest else child
                if neighbour not in seen:
                    seen.add(neighbour)
                    queue.append(neighbour)

    def parents(self, digest: str) -> Iterator[tuple[str, str, str]]:
        """The edges up from a digest."""
        statement = select(ArtifactParent.digest, ArtifactParent.role).join(Artifact).where(Artifact.digest == digest)
        for parent, role in self._session.execute(statement.where(visible(Artifact, self._tenant_id)).distinct()):
            yield parent, digest, role

    def children(self, digest: str) -> Iterator[tuple[str, str, str]]:
        """The edges down from a digest."""
        statement = select(Artifact.digest, ArtifactParent.role).join(Artifact).where(ArtifactParent.digest == digest)
        for child, role in self._session.execute(statement.where(visible(Artifact, self._tenant_id)).distinct()):
            yield digest, child, role

    def _node(self, digest: str) -> LineageNode:
        own_first = (Artifact.tenant_id != self._tenant_id, Artifact.created_at)
        artifacts = select(Artifact).where(Artifact.digest == digest, visible(Artifact, self._tenant_id))
        artifact = self._session.scalars(artifacts.order_by(*own_first).limit(1)).one_or_none()
        if artifact is not None:
            return LineageNode.model_validate(
                {"digest": digest, "kind": artifact.kind, "id": artifact.id, "name": artifact.name}
            )
        files = select(File).where(File.sha256 == digest, visible(File, self._tenant_id)).order_by(File.created_at)
        file = self._session.scalars(files.limit(1)).one_or_none()
        if file is not None:
            return LineageNode(digest=digest, kind="file", id=file.id, name=file.filename)
        return LineageNode(digest=digest, kind="unknown", id=None)
