"""Base models by name. A tenant's names and aliases are one space: each stands for one model."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from armature.db.models import BaseModel, BaseModelAlias
from armature.errors import NameTaken


def check_name(session: Session, tenant_id: str, name: str, param: str) -> None:
    """Refuse a name that is given already. One that is free now may be taken when the model is registered.

    Args:
        param: The field that asked for the name.

    Raises:
        NameTaken: The tenant has a base model, or an alias, of that name.
    """
    if session.get(BaseModelAlias, (tenant_id, name)) is not None:
        raise NameTaken(f"you have an alias named {name!r} already", param=param)
    same_name = select(BaseModel.id).where(BaseModel.tenant_id == tenant_id, BaseModel.name == name)
    if session.scalars(same_name).one_or_none() is not None:
        raise _model_has_it(name, param)


def register(session: Session, model: BaseModel, param: str) -> None:
    """Give a checkpoint its name; the caller must roll back if this raises.

    Raises:
        NameTaken: As :func:`check_name`, and where another transaction was faster.
    """
    check_name(session, model.tenant_id, model.name, param)
    session.add(model)
    try:
        session.flush()
    except IntegrityError as error:
        raise _model_has_it(model.name, param) from error


def _model_has_it(name: str, param: str) -> NameTaken:
    return NameTaken(f"you have a base model named {name!r} already", param=param)
