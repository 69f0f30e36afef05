"""Registration of base models by name. A tenant's model names and aliases share one namespace."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from armature.db.models import BaseModel, BaseModelAlias
from armature.errors import NameTaken


def check_name(session: Session, tenant_id: str, name: str, param: str) -> None:
    """Refuse a ``name`` that is taken, early: a concurrent transaction may still win :func:`register`.

    Args:
        session: The caller's transaction.
        tenant_id: The owner of the namespace.
        name: The name to check.
        param: The field to blame in the error.

    Raises:
        NameTaken: The tenant has a base model or an alias of that name.
    """
    if session.get(BaseModelAlias, (tenant_id, name)) is not None:
        raise NameTaken(f"an alias named {name!r} already exists", param=param)
    same_name = select(BaseModel.id).where(BaseModel.tenant_id == tenant_id, BaseModel.name == name)
    if session.scalars(same_name).one_or_none() is not None:
        raise _name_taken(name, param)


def register(session: Session, model: BaseModel, param: str) -> None:
    """Insert ``model`` under its name; the caller must roll back if this raises.

    Raises:
        NameTaken: As in :func:`check_name`, or a concurrent transaction took the name first.
    """
    check_name(session, model.tenant_id, model.name, param)
    session.add(model)
    try:
        session.flush()
    except IntegrityError as error:
        raise _name_taken(model.name, param) from error


def _name_taken(name: str, param: str) -> NameTaken:
    return NameTaken(f"a base model named {name!r} already exists", param=param)
