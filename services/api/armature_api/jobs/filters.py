"""Filters of job lists: from query parameters to SQL conditions."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Query, Request
from sqlalchemy import ColumnElement, exists

from armature.contracts.jobs import JobState
from armature.contracts.specs import JobKind
from armature.db.models import Job, JobLabel
from armature.errors import InvalidRequest

_METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
_MAX_PAIRS = 16


def has_pair(key: str, value: str) -> ColumnElement[bool]:
    """Build the condition that a job's metadata has ``key`` with ``value``."""
    same_job = (JobLabel.job_id == Job.id, JobLabel.tenant_id == Job.tenant_id)
    return exists().where(*same_job, JobLabel.key == key, JobLabel.value == value)


def _filters(
    request: Request,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
    kind: Annotated[JobKind | None, Query(description="only jobs of this kind")] = None,
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
        raise InvalidRequest(f"takes up to {_MAX_PAIRS} pairs of at most 64 and 512 characters", param="metadata")
    return [*conditions, *(has_pair(key, value) for key, value in pairs)]


FiltersDep = Annotated[list[ColumnElement[bool]], Depends(_filters)]
