"""The lineage graph: artifacts and their inputs, linked by digest, as far as a tenant may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import ColumnElement, literal, select
from sqlalchemy.orm import Session

from armature.contracts.artifact_views import LineageEdge, LineageNode, LineageView
from armature.db.models import Artifact, ArtifactParent, Dataset, File
from armature_api.kit.queries import visible

MAX_NODES = 1000
MAX_EDGES = 10_000
"""Per generation: a base may have very many descendants."""

ROWS = "rows"
"""The role of an artifact whose files became data sets."""
Edge = tuple[str, str, str]
"""Parent, child and role."""
_NODE = ("digest", "kind", "id", "name")


def trace(session: Session, tenant_id: str, root: Artifact) -> LineageView:
    """Collect ancestors and descendants of ``root``, nearest first.

    An ancestor that was deleted, or that the tenant may not see, becomes a node of kind ``unknown``: its digest is
    public in its children's manifests.
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
    """The nodes and edges found so far."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session, self._tenant_id = session, tenant_id
        self.nodes: dict[str, LineageNode] = {}
        self.edges: set[Edge] = set()
        self.truncated = False

    def walk(self, start: str, follow: Callable[[list[str]], Iterator[Edge]]) -> None:
        """Add what ``follow`` reaches from ``start``, breadth first; every digest once, so a cycle ends."""
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
        """Yield the edges from ``digests`` to their parents."""
        yield from self._edges(Artifact.digest.in_(digests))
        yield from self._rows(File.sha256.in_(digests))

    def children(self, digests: list[str]) -> Iterator[Edge]:
        """Yield the edges from ``digests`` to their children."""
        yield from self._edges(ArtifactParent.digest.in_(digests))
        yield from self._rows(Artifact.digest.in_(digests))

    def _edges(self, where: ColumnElement[bool]) -> Iterator[Edge]:
        statement = select(ArtifactParent.digest, Artifact.digest, ArtifactParent.role).join(Artifact)
        statement = statement.where(where, visible(Artifact, self._tenant_id)).limit(MAX_EDGES)
        found = self._session.execute(statement).all()
        self.truncated |= len(found) == MAX_EDGES
        return ((parent, child, role) for parent, child, role in found)

    def _rows(self, where: ColumnElement[bool]) -> Iterator[Edge]:
        """Yield the edges from artifacts to the files of the data sets that their jobs made of them."""
        statement = select(Artifact.digest, File.sha256)
        statement = statement.join(Dataset, Dataset.job_id == Artifact.job_id).join(File, File.id == Dataset.file_id)
        visible_rows = (visible(Artifact, self._tenant_id), visible(File, self._tenant_id))
        for artifact, file in self._session.execute(statement.where(where, *visible_rows).limit(MAX_EDGES)):
            yield artifact, file, ROWS

    def _describe(self, digests: list[str]) -> dict[str, LineageNode]:
        """Build a node for each digest, in order: own artifact, shared artifact, file, or ``unknown``."""
        own_last = (Artifact.tenant_id == self._tenant_id, Artifact.created_at.desc())
        artifacts = select(Artifact.digest, Artifact.kind, Artifact.id, Artifact.name).order_by(*own_last)
        files = select(File.sha256, literal("file"), File.id, File.filename).order_by(File.created_at.desc())
        known = {}
        for statement in (
            files.where(File.sha256.in_(digests), visible(File, self._tenant_id)),
            artifacts.where(Artifact.digest.in_(digests), visible(Artifact, self._tenant_id)),
        ):
            for row in self._session.execute(statement):  # several rows of one digest: the last wins
                known[row[0]] = LineageNode.model_validate(dict(zip(_NODE, row, strict=True)))
        return {digest: known.get(digest) or LineageNode(digest=digest, kind="unknown", id=None) for digest in digests}
