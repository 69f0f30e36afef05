"""Which jobs a list shows: query parameters as conditions."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from sqlalchemy import Boolean, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from armature.contracts.jobs import JobState
from armature.db.models import Job
from armature.errors import InvalidRequest

_METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
_MAX_PAIRS = 16


class has_pair(FunctionElement[bool]):
    """Whether a JSON object holds a key with this value: ``has_pair(column, key, value)``."""

    type = Boolean()
    inherit_cache = True


@compiles(has_pair, "postgresql")
def _on_postgresql(element: has_pair, compiler: SQLCompiler, **options: Any) -> str:
    column, key, value = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} @> jsonb_build_object({key}, {value})"


@compiles(has_pair, "sqlite")
def _on_sqlite(element: has_pair, compiler: SQLCompiler, **options: Any) -> str:
    column, key, value = (compiler.process(clause, **options) for clause in element.clauses)
    pairs = f"json_each({column}) pair"
    return f"EXISTS (SELECT 1 FROM {pairs} WHERE pair.key = {key} AND pair.value = {value})"  # noqa: S608 compiled


def _filters(
    request: Request,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
    kind: Annotated[str | None, Query(max_length=64, pattern=r"^[a-z_.]+$", description="only jobs of it")] = None,
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if state is not None:
        conditions.append(Job.state == state)
    if kind is not None:
        conditions.append(Job.kind == kind)
    pairs = [
        (match[1], value) for name, value in request.query_params.multi_items() if (match := _METADATA.fullmatch(name))
    ]
    if len(pairs) > _MAX_PAIRS or any("\0" in text or len(text) > 512 for pair in pairs for text in pair):
        raise InvalidRequest(f"up to {_MAX_PAIRS} pairs of at most 64 and 512 characters", param="metadata")
    return [*conditions, *(has_pair(Job.job_metadata, key, value) for key, value in pairs)]


FiltersDep = Annotated[list[ColumnElement[bool]], Depends(_filters)]
