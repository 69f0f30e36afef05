"""The number of SQL statements per response does not grow with its content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from armature.contracts.artifacts import Parent
from tests.support.api import Api, task_vector

ROWS = [{"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": n % 2}} for n in range(4)]


@contextmanager
def counted(api: Api) -> Iterator[list[str]]:
    """Collect the statements sent inside the block."""
    statements: list[str] = []

    def note(connection, cursor, statement, *_):
        statements.append(statement)

    event.listen(api.resources.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(api.resources.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/fine_tuning/jobs", "/v1/artifacts"])
def test_a_longer_list_takes_no_more_queries(api: Api, path: str) -> None:
    key = api.platform
    base, _ = api.base_model(key.tenant_id)
    for n in range(6):
        file = key.upload("".join(json.dumps({**row, "id": n}) + "\n" for row in ROWS).encode(), "fine-tune").json()
        answer = key.post("/v1/fine_tuning/jobs", {"model": base, "training_file": file["id"]})
        assert answer.status_code == 200, answer.text
        api.publish(key.tenant_id, task_vector(f"base-{n}"))
    counts = {}
    for limit in (2, 6):
        with counted(api) as statements:
            assert len(key.get(path, params={"limit": limit}).json()["data"]) == limit
        counts[limit] = len(statements)
    assert counts[2] == counts[6] > 0


def test_a_wider_lineage_takes_no_more_queries(api: Api) -> None:
    key = api.platform
    _, base = api.base_model(key.tenant_id)
    counts = []
    for n in range(3):
        parents = [Parent(role="base_model", digest=base.digest), Parent(role="pairs", digest=f"{n:064x}")]
        api.publish(key.tenant_id, task_vector(f"base-{n}"), parents=parents)
        with counted(api) as statements:
            graph = key.get(f"/v1/artifacts/{base.id}/lineage").json()
        assert len(graph["nodes"]) == n + 2
        counts.append(len(statements))
    assert len(set(counts)) == 1
