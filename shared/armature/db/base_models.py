"""Base models by name. A tenant's names and aliases are one space: each stands for one model."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from armature.db.models import BaseModel, BaseModelAlias
from armature.errors import NameTaken


def register(session: Session, model: BaseModel, param: str) -> None:
    """Give a checkpoint its name; the caller must roll back if this raises.

    Args:
        param: The field that asked for the name.

    Raises:
        NameTaken: The tenant has a base model, or an alias, of that name.
    """
    if session.get(BaseModelAlias, (model.tenant_id, model.name)) is not None:
        raise NameTaken(f"you have an alias named {model.name!r} already", param=param)
    session.add(model)
    try:
        session.flush()
    except IntegrityError as error:
        raise NameTaken(f"you have a base model named {model.name!r} already", param=param) from error
