"""Lineage: the graph of what was made from what, followed by digest within what a tenant may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import ColumnElement, literal, select
from sqlalchemy.orm import Session

from armature.contracts.artifacts import LineageEdge, LineageNode, LineageView
from armature.db.models import Artifact, ArtifactParent, File
from armature_api.kit.queries import visible

MAX_NODES = 1000
MAX_EDGES = 10_000
"""Of a generation: a base may have more descendants than anybody can look at."""

Edge = tuple[str, str, str]
"""Parent, child and role."""
_NODE = ("digest", "kind", "id", "name")


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
        self.edges: set[Edge] = set()
        self.truncated = False

    def walk(self, start: str, follow: Callable[[list[str]], Iterator[Edge]]) -> None:
        """Breadth first from a digest, a generation at a time; every digest once, so that no work makes a loop."""
        seen, generation = {start}, [start]
        while generation:
            unknown = [digest for digest in generation if digest not in self.nodes]
            room = MAX_NODES - len(self.nodes)
            self.nodes |= self._describe(unknown[:room])
            if len(unknown) > room:
                self.truncated = True
                return
            edges = sorted(set(follow(generation)))
            self.edges.update(edges)
            generation = list(dict.fromkeys(digest for edge in edges for digest in edge[:2] if digest not in seen))
            seen.update(generation)

    def parents(self, digests: list[str]) -> Iterator[Edge]:
        """The edges up from digests."""
        return self._edges(Artifact.digest.in_(digests))

    def children(self, digests: list[str]) -> Iterator[Edge]:
        """The edges down from digests."""
        return self._edges(ArtifactParent.digest.in_(digests))

    def _edges(self, where: ColumnElement[bool]) -> Iterator[Edge]:
        statement = select(ArtifactParent.digest, Artifact.digest, ArtifactParent.role).join(Artifact)
        statement = statement.where(where, visible(Artifact, self._tenant_id)).limit(MAX_EDGES)
        found = self._session.execute(statement).all()
        self.truncated |= len(found) == MAX_EDGES
        return ((parent, child, role) for parent, child, role in found)

    def _describe(self, digests: list[str]) -> dict[str, LineageNode]:
        """A node for each digest, in their order: an artifact, the tenant's own first, or else a file."""
        own_last = (Artifact.tenant_id == self._tenant_id, Artifact.created_at.desc())
        artifacts = select(Artifact.digest, Artifact.kind, Artifact.id, Artifact.name).order_by(*own_last)
        files = select(File.sha256, literal("file"), File.id, File.filename).order_by(File.created_at.desc())
        known = {}
        for statement in (
            files.where(File.sha256.in_(digests), visible(File, self._tenant_id)),
            artifacts.where(Artifact.digest.in_(digests), visible(Artifact, self._tenant_id)),
        ):
            for row in self._session.execute(statement):  # of one digest the last stays
                known[row[0]] = LineageNode.model_validate(dict(zip(_NODE, row, strict=True)))
        return {digest: known.get(digest) or LineageNode(digest=digest, kind="unknown", id=None) for digest in digests}
