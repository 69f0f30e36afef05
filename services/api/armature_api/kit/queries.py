"""Queries that every resource needs: find, list and insert rows, within what a tenant may see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import WithJsonSchema
from sqlalchemy import ColumnElement, Select, and_, or_, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from armature.db.artifacts import is_expired
from armature.db.base import Base
from armature.db.models import ApiKey, Artifact, BaseModel, Dataset, File, Job, Profile, Tenant
from armature.errors import ArmatureError, InvalidCursor, NotFound

Owned = TypeVar("Owned", File, Dataset, Job, Artifact, BaseModel, Profile)
Listed = TypeVar("Listed", File, Dataset, Job, Artifact, BaseModel, Profile, Tenant, ApiKey)
Numbered = TypeVar("Numbered")

_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class PageRequest:
    """Query of a list: which page, in which order."""

    limit: Annotated[int, Query(ge=1, le=100, description="items in the page")] = 20
    after: Annotated[
        Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_ID.pattern}$"})] | None,
        Query(description="id of the previous page's last item"),
    ] = None
    order: Annotated[Literal["asc", "desc"], Query(description="asc: oldest first")] = "desc"


PageDep = Annotated[PageRequest, Depends()]


def visible(model: type[Owned], tenant_id: str) -> ColumnElement[bool]:
    """Build the condition for rows that a tenant may see: its own, and shared artifacts and base models.

    Expired artifacts are visible to no tenant.
    """
    return or_(*visible_parts(model, tenant_id))


def visible_parts(model: type[Owned], tenant_id: str) -> list[ColumnElement[bool]]:
    """Build :func:`visible` as disjoint conditions: each has an index in list order, their union has none."""
    parts: list[ColumnElement[bool]] = [model.tenant_id == tenant_id]
    if issubclass(model, Artifact | BaseModel):
        parts.append(and_(model.shared, model.tenant_id != tenant_id))
    return [and_(part, ~is_expired()) for part in parts] if issubclass(model, Artifact) else parts


def find(session: Session, model: type[Owned], tenant_id: str, id: str, *, param: str | None = None) -> Owned:
    """Find a row by its id.

    Raises:
        NotFound: It does not exist or is another tenant's; a client can not tell which.
    """
    where = visible(model, tenant_id)
    row = session.scalars(select(model).where(model.id == id, where)).one_or_none() if is_id(id) else None
    if row is None:
        raise not_found(model, param)
    return row


def not_found(model: type[Base], param: str | None = None) -> NotFound:
    """Build the error for a row that does not exist or that the tenant may not see."""
    return NotFound(f"there is no such {model.__tablename__.removesuffix('s').replace('_', ' ')}", param=param)


def is_id(text: str) -> bool:
    """Tell whether ``text`` has the form of an id; any other text never reaches the database."""
    return _ID.fullmatch(text) is not None


def newest_first(
    session: Session,
    model: type[Listed],
    parts: Sequence[ColumnElement[bool]],
    page: PageRequest,
    filters: Sequence[ColumnElement[bool]] = (),
) -> tuple[list[Listed], bool]:
    """Read a page by key set, stable while rows are added, and whether more rows follow.

    Args:
        parts: Disjoint conditions whose rows make up the list.
        filters: Conditions on the list but not on the cursor's row, which may have changed since its page.

    Raises:
        InvalidCursor: ``page.after`` is not in the list.
    """
    key = tuple_(model.created_at, model.id)
    ascending = page.order == "asc"
    order = (model.created_at, model.id) if ascending else (model.created_at.desc(), model.id.desc())
    statement = select(model).where(*filters).order_by(*order).limit(page.limit + 1)
    if page.after is not None:
        cursor = select(model.created_at, model.id).where(model.id == page.after, or_(*parts))
        position = session.execute(cursor).one_or_none() if is_id(page.after) else None
        if position is None:
            raise InvalidCursor("'after' names no item of this list", param="after")
        after = tuple_(*position)
        statement = statement.where(key > after if ascending else key < after)
    found = [row for part in parts for row in session.scalars(statement.where(part))]
    if len(parts) > 1:
        found.sort(key=lambda row: (row.created_at, row.id), reverse=not ascending)
    return found[: page.limit], len(found) > page.limit


def insert(session: Session, row: Base, otherwise: ArmatureError) -> None:
    """Insert a row and read back its defaults.

    Raises:
        ArmatureError: ``otherwise``, if a unique constraint is violated.
    """
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        raise otherwise from None


def numbered_below(
    session: Session, statement: Select[Numbered], number: InstrumentedAttribute[int], below: int | None, limit: int
) -> tuple[list[Numbered], bool]:
    """Read a page of rows numbered without gaps, highest first, and whether more follow.

    Args:
        number: The numbered column.
        below: The previous page's last number; None starts at the newest row.
    """
    if below is not None:
        statement = statement.where(number < below)
    found = session.scalars(statement.order_by(number.desc()).limit(limit + 1)).all()
    return list(found[:limit]), len(found) > limit
